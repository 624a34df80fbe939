package image

import "golang.org/x/sys/unix"

// The settings of a network device are in images as lists without names (conf4 and conf6 of netdev-N.img and netns-N.img):
// what each entry is follows from its place. These are the names of the files below /proc/sys/net/ipv4/conf/DEVICE and
// /proc/sys/net/ipv6/conf/DEVICE in that order. Newer tools may have added to the end.
var (
	DeviceSettings4 = []string{
		"accept_local", "accept_redirects", "accept_source_route", "arp_accept", "arp_announce", "arp_filter",
		"arp_ignore", "arp_notify", "bootp_relay", "disable_policy", "disable_xfrm", "force_igmp_version", "forwarding",
		"igmpv2_unsolicited_report_interval", "igmpv3_unsolicited_report_interval", "log_martians", "medium_id",
		"promote_secondaries", "proxy_arp", "proxy_arp_pvlan", "route_localnet", "rp_filter", "secure_redirects",
		"send_redirects", "shared_media", "src_valid_mark", "tag", "ignore_routes_with_linkdown", "drop_gratuitous_arp",
		"drop_unicast_in_l2_multicast",
	}
	DeviceSettings6 = []string{
		"accept_dad", "accept_ra", "accept_ra_defrtr", "accept_ra_from_local", "accept_ra_min_hop_limit",
		"accept_ra_mtu", "accept_ra_pinfo", "accept_ra_rt_info_max_plen", "accept_ra_rtr_pref", "accept_redirects",
		"accept_source_route", "autoconf", "dad_transmits", "disable_ipv6", "drop_unicast_in_l2_multicast",
		"drop_unsolicited_na", "force_mld_version", "force_tllao", "forwarding", "hop_limit",
		"ignore_routes_with_linkdown", "keep_addr_on_down", "max_addresses", "max_desync_factor",
		"mldv1_unsolicited_report_interval", "mldv2_unsolicited_report_interval", "mtu", "ndisc_notify",
		"optimistic_dad", "proxy_ndp", "regen_max_retry", "router_probe_interval", "router_solicitation_delay",
		"router_solicitation_interval", "router_solicitations", "stable_secret", "suppress_frag_ndisc",
		"temp_prefered_lft", "temp_valid_lft", "use_oif_addrs_only", "use_optimistic", "use_tempaddr",
	}
)

// Settings that are told apart by name.
const (
	StableSecret    = "stable_secret" // of IPv6 devices; the only text among numbers
	MTU             = "mtu"           // of IPv6 devices
	AcceptRedirects = "accept_redirects"
	MaxDgramQlen    = "unix/max_dgram_qlen"   // unix_conf
	PingGroupRange  = "ipv4/ping_group_range" // ipv4_sysctl
)

// RouteDump is an image of messages of rtnetlink, in the form of `ip address save` and its likes: a magic number, then the
// messages as the kernel tells them, each aligned to 4 bytes.
type RouteDump struct {
	Pattern      string
	Magic        uint32
	List, Answer int // types of the message that asks for all, and of one that tells of one or makes it
}

// The images of addresses, routes and rules.
var (
	Addresses = RouteDump{"ifaddr-%d.img", 0x47361222, unix.RTM_GETADDR, unix.RTM_NEWADDR}
	Routes    = RouteDump{"route-%d.img", 0x45311224, unix.RTM_GETROUTE, unix.RTM_NEWROUTE}
	Routes6   = RouteDump{"route6-%d.img", 0x45311224, unix.RTM_GETROUTE, unix.RTM_NEWROUTE}
	Rules     = RouteDump{"rule-%d.img", 0x71706986, unix.RTM_GETRULE, unix.RTM_NEWRULE}
)
