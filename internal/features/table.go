package features

// All lists the features in the order of `criu check --feature list`.
var All = register(
	[]*Feature{ // criu's names, in criu's order
		MntID, DirtyTrack, AioRemap, TimerFD, Tun, TunNS, UserNS, FdinfoLock, SeccompSuspend, SeccompFilters, Loginuid,
		CgroupNS, Autofs, TCPHalfClosed, CompatTask, Uffd, UffdNonCoop, MapVdso, SockNS, UnixFile, DiagRaw, NetNSID,
		LinkNSID, KcmpEpoll, TimeNS, ExternalNet, SetTid, NewIfindex, Nftables, IptLegacy, PidfdStore, NSPid,
		ApparmorStack, NftablesLock, BufLock, MemfdHugetlb, MountSetGroup, Openat2, RseqConf, IPv6Freebind, PagemapScan,
		TimerIDs, OverlayMaps, Breakpoints, GuardScan,
	}, []*Feature{ // ours
		MapFiles, Kcmp, PrctlMM, PtraceSiginfo, GetOwnerUIDs, SockDiag, PeekOff, TCPRepair, TCPWindow, TTYLock,
		PosixTimers, ProcmapQuery, SoftDirty, WPAsync, CloneIntoCgroup, MemfdExec, CloseRange, PidfdGetfd, SysResource, IOURing,
		CheckpointRestore,
	},
)
