package crit

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"

	"encoding/binary"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/opts"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// field is what the conversion has to know of a message field: criu marks some by options in its definitions.
type field struct {
	protoreflect.FieldDescriptor
	name  string
	hex   bool
	ip    bool
	dev   bool   // major and minor packed as the kernel does
	odev  bool   // packed as in stat(2)
	flags string // names of the bits
	dict  map[uint64]string
	unix  bool // bytes, the name of a unix socket
}

var layouts sync.Map // protoreflect.FullName -> []field

// fieldsOf returns the fields of a message in the order of their numbers.
func fieldsOf(md protoreflect.MessageDescriptor) []field {
	if l, ok := layouts.Load(md.FullName()); ok {
		return l.([]field)
	}
	var l []field
	for i := range md.Fields().Len() {
		fd := md.Fields().Get(i)
		f := field{FieldDescriptor: fd, name: string(fd.Name())}
		if o, ok := proto.GetExtension(fd.Options(), opts.E_Criu).(*opts.CRIU_Opts); ok && o != nil {
			f.hex, f.ip, f.dev, f.odev = o.GetHex(), o.GetIpadd(), o.GetDev(), o.GetOdev()
			f.flags, f.unix = o.GetFlags(), o.GetConv() == "unix_name"
			if o.GetDict() != "" {
				f.dict = dicts[o.GetDict()+"."+f.name]
			}
		}
		l = append(l, f)
	}
	slices.SortFunc(l, func(a, b field) int { return cmp.Compare(a.Number(), b.Number()) })
	layouts.Store(md.FullName(), l)
	return l
}

// bit is a named bit of a flags field.
type bit struct {
	name string
	mask uint64
}

// flagBits are the names that pretty output has for the bits of some fields, in the order of writing. The
// kernel's and criu's own (VMA_*, PE_*).
var flagBits = map[string][]bit{
	"mmap.prot":  {{"PROT_READ", 1}, {"PROT_WRITE", 2}, {"PROT_EXEC", 4}},
	"mmap.flags": {{"MAP_SHARED", 1}, {"MAP_PRIVATE", 2}, {"MAP_DROPPABLE", 8}, {"MAP_ANON", 0x20}, {"MAP_GROWSDOWN", 0x100}},
	"mmap.status": {
		{"VMA_AREA_REGULAR", 1 << 0}, {"VMA_AREA_STACK", 1 << 1}, {"VMA_AREA_VSYSCALL", 1 << 2},
		{"VMA_AREA_VDSO", 1 << 3}, {"VMA_AREA_HEAP", 1 << 5}, {"VMA_FILE_PRIVATE", 1 << 6},
		{"VMA_FILE_SHARED", 1 << 7}, {"VMA_ANON_SHARED", 1 << 8}, {"VMA_ANON_PRIVATE", 1 << 9},
		{"VMA_AREA_SYSVIPC", 1 << 10}, {"VMA_AREA_SOCKET", 1 << 11}, {"VMA_AREA_VVAR", 1 << 12},
		{"VMA_AREA_AIORING", 1 << 13}, {"VMA_AREA_MEMFD", 1 << 14}, {"VMA_AREA_SHSTK", 1 << 15},
		{"VMA_AREA_UPROBES", 1 << 17}, {"VMA_UNSUPP", 1 << 31},
	},
	"rfile.flags": {
		{"O_WRONLY", 0o1}, {"O_RDWR", 0o2}, {"O_CREAT", 0o100}, {"O_EXCL", 0o200}, {"O_NOCTTY", 0o400},
		{"O_TRUNC", 0o1000}, {"O_APPEND", 0o2000}, {"O_NONBLOCK", 0o4000}, {"O_DSYNC", 0o10000},
		{"FASYNC", 0o20000}, {"O_DIRECT", 0o40000}, {"O_LARGEFILE", 0o100000}, {"O_DIRECTORY", 0o200000},
		{"O_NOFOLLOW", 0o400000}, {"O_NOATIME", 0o1000000}, {"O_CLOEXEC", 0o2000000},
	},
	"seals.flags": {
		{"F_SEAL_SEAL", 1}, {"F_SEAL_SHRINK", 2}, {"F_SEAL_GROW", 4}, {"F_SEAL_WRITE", 8}, {"F_SEAL_FUTURE_WRITE", 0x10},
	},
	"pmap.flags": {{"PE_PARENT", 1}, {"PE_LAZY", 2}, {"PE_PRESENT", 4}},
}

// dicts are the names of the values of some fields, by group and field.
var dicts = map[string]map[uint64]string{
	"gen.task_state": {1: "Alive", 3: "Zombie", 6: "Stopped"},
	"sk.family":      {1: "UNIX", 2: "INET", 10: "INET6", 16: "NETLINK", 17: "PACKET"},
	"sk.type":        {1: "STREAM", 2: "DGRAM", 3: "RAW", 5: "SEQPACKET", 10: "PACKET"},
	"sk.state": {
		1: "ESTABLISHED", 2: "SYN_SENT", 3: "SYN_RECV", 4: "FIN_WAIT1", 5: "FIN_WAIT2", 6: "TIME_WAIT", 7: "CLOSE",
		8: "CLOSE_WAIT", 9: "LAST_ACK", 10: "LISTEN",
	},
	"sk.proto": {0: "IP", 6: "TCP", 17: "UDP", 136: "UDPLITE"},
}

// minorBits is where the kernel's dev_t splits.
const minorBits = 20

// text is how pretty output shows integer v, "" for as a plain number. hex is passed down from an outer field.
func (f *field) text(v uint64, negative, hex bool) string {
	switch {
	case hex || f.hex:
		return hexText(v, negative)
	case f.odev:
		return fmt.Sprintf("%d:%d", unix.Major(v), unix.Minor(v))
	case f.dev:
		return fmt.Sprintf("%d:%d", v>>minorBits, v&(1<<minorBits-1))
	case f.flags != "":
		return flagText(v, f.flags)
	}
	return f.dict[v]
}

func hexText(v uint64, negative bool) string {
	if negative {
		return fmt.Sprintf("-%#x", -v)
	}
	return fmt.Sprintf("%#x", v)
}

func flagText(v uint64, group string) string {
	bits, ok := flagBits[group]
	if !ok {
		return hexText(v, false)
	}
	var names []string
	for _, b := range bits {
		if v&b.mask != 0 {
			names = append(names, b.name)
		}
		v &^= b.mask
	}
	if v != 0 {
		names = append(names, hexText(v, false))
	}
	return strings.Join(names, " | ")
}

// number is the way back from text, or from the digits of a plain number. Negative numbers are in two's complement.
func (f *field) number(s string) (uint64, error) {
	switch {
	case f.dev || f.odev:
		if major, minor, ok := strings.Cut(s, ":"); ok {
			ma, err := strconv.ParseUint(major, 10, 32)
			mi, err2 := strconv.ParseUint(minor, 10, 32)
			if err != nil || err2 != nil {
				return 0, fmt.Errorf("%q is no device number", s)
			}
			if f.odev {
				return unix.Mkdev(uint32(ma), uint32(mi)), nil
			}
			return ma<<minorBits | mi, nil
		}
	case f.flags != "":
		return f.flagNumber(s)
	}
	for v, name := range f.dict {
		if name == s {
			return v, nil
		}
	}
	return parseNumber(s)
}

func (f *field) flagNumber(s string) (uint64, error) {
	var v uint64
	if s == "" {
		return 0, nil
	}
	for part := range strings.SplitSeq(s, "|") {
		part = strings.TrimSpace(part)
		if i := slices.IndexFunc(flagBits[f.flags], func(b bit) bool { return b.name == part }); i >= 0 {
			v |= flagBits[f.flags][i].mask
			continue
		}
		if part == "VMA_AREA_NONE" {
			continue
		}
		n, err := parseNumber(part)
		if err != nil {
			return 0, err
		}
		v |= n
	}
	return v, nil
}

func parseNumber(s string) (uint64, error) {
	if strings.HasPrefix(s, "-") {
		v, err := strconv.ParseInt(s, 0, 64)
		if err != nil {
			return 0, fmt.Errorf("%q is no number", s)
		}
		return uint64(v), nil
	}
	v, err := strconv.ParseUint(s, 0, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is no number", s)
	}
	return v, nil
}

// address shows an IP address that is stored as one or four words in network order; "" when it is neither.
func address(l protoreflect.List) string {
	var b []byte
	for i := range l.Len() {
		b = binary.LittleEndian.AppendUint32(b, uint32(l.Get(i).Uint()))
	}
	addr, ok := netip.AddrFromSlice(b)
	if !ok {
		return ""
	}
	if addr.Is4In6() {
		// Never with dots, as Python up to 3.12.
		return fmt.Sprintf("::ffff:%x:%x", binary.BigEndian.Uint16(b[12:]), binary.BigEndian.Uint16(b[14:]))
	}
	return addr.String()
}

// addressWords is the way back.
func addressWords(s string) ([]uint32, error) {
	addr, err := netip.ParseAddr(s)
	if err != nil {
		return nil, err
	}
	var words []uint32
	for b := addr.AsSlice(); len(b) > 0; b = b[4:] {
		words = append(words, binary.LittleEndian.Uint32(b))
	}
	return words, nil
}
