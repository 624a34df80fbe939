// Package netfilter stores the packet filters and tracked connections of a network namespace and puts them back, in the
// forms that criu's images have: rules in the language of the commands iptables (legacy) and nft, connections as messages of
// ctnetlink.
//
// What it does it does in the namespace of the calling thread, see package nsenter. For the rules there is no other way than
// the commands: no library speaks their languages.
//
// Kernel interfaces: /proc/net/ip_tables_names, nf_tables (Linux 3.13), ctnetlink (2.6.14). Images: iptables-N, ip6tables-N,
// nftables-N, netns-ct-N, netns-exp-N.
package netfilter

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// Family is the rules of one command.
type Family struct {
	Pattern string // of the name of the image
	save    []string
	restore []string
	used    func() (bool, error)
}

// Families are all there are.
var Families = []Family{
	{"iptables-%d.img", []string{"iptables-legacy-save"}, []string{"iptables-legacy-restore", "-w"}, legacyTables("ip_tables_names")},
	{"ip6tables-%d.img", []string{"ip6tables-legacy-save"}, []string{"ip6tables-legacy-restore", "-w"}, legacyTables("ip6_tables_names")},
	{"nftables-%d.img", []string{"nft", "list", "table"}, []string{"nft", "-f", "-"}, func() (bool, error) {
		tables, err := nfTables()
		return len(tables) > 0, err
	}},
}

func legacyTables(file string) func() (bool, error) {
	return func() (bool, error) {
		text, err := os.ReadFile("/proc/thread-self/net/" + file)
		if errors.Is(err, fs.ErrNotExist) {
			err = nil // the module is not loaded
		}
		return len(bytes.TrimSpace(text)) > 0, err
	}
}

// lockPrefix is how the names of the tables begin by which dumps lock the network.
const lockPrefix = "CRIU-"

// nfTables lists the tables of nf_tables as the command nft names them: without locks.
func nfTables() (names [][]string, err error) {
	c, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("nf_tables: %w", err)
	}
	tables, err := c.ListTables()
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EINVAL) {
		return nil, nil // this kernel has none
	}
	if err != nil {
		return nil, fmt.Errorf("tables of nf_tables: %w", err)
	}
	families := map[nftables.TableFamily]string{
		nftables.TableFamilyINet: "inet", nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6",
		nftables.TableFamilyARP: "arp", nftables.TableFamilyNetdev: "netdev", nftables.TableFamilyBridge: "bridge",
	}
	for _, t := range tables {
		if !strings.HasPrefix(t.Name, lockPrefix) {
			names = append(names, []string{families[t.Family], t.Name})
		}
	}
	return names, nil
}

// Rules are the rules of a family, nil if there are none.
func (f Family) Rules() (rules []byte, err error) {
	used, err := f.used()
	if err != nil || !used {
		return nil, err
	}
	parts := [][]string{nil}
	if f.save[0] == "nft" {
		if parts, err = nfTables(); err != nil {
			return nil, err
		}
	}
	for _, part := range parts {
		text, err := run(slices.Concat(f.save, part), nil)
		if err == nil && (bytes.Contains(text, []byte("xt match")) || bytes.Contains(text, []byte("xt target"))) {
			err = fmt.Errorf("rules of iptables in nf_tables, which %s cannot say", strings.Join(f.save, " "))
		}
		if err != nil {
			return nil, err
		}
		rules = append(rules, text...)
	}
	return rules, nil
}

// Restore sets rules that Rules has returned.
func (f Family) Restore(rules io.Reader) error {
	_, err := run(f.restore, rules)
	return err
}

// run runs a command and returns what it says.
func run(argv []string, stdin io.Reader) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.Bytes(), nil
}

// UnlockIptables takes away the lock that criu makes of a whole namespace with one of the iptables commands: a chain that
// drops what has not the mark, which all packets go through first.
func UnlockIptables() error {
	const chain = "CRIU"
	for _, command := range []string{"iptables-legacy", "iptables", "ip6tables-legacy", "ip6tables"} {
		if _, err := exec.LookPath(command + "-save"); err != nil {
			continue
		}
		rules, err := run([]string{command + "-save", "-t", "filter"}, nil)
		if err != nil || !bytes.Contains(rules, []byte("\n:"+chain+" ")) {
			continue // there are no such tables, or no lock in them
		}
		undo := "*filter\n:" + chain + " - [0:0]\n" // empties it
		for line := range strings.Lines(string(rules)) {
			if rule, ok := strings.CutPrefix(line, "-A "); ok && strings.HasSuffix(strings.TrimSpace(rule), " -j "+chain) {
				undo += "-D " + rule
			}
		}
		undo += "-X " + chain + "\nCOMMIT\n"
		if _, err := run([]string{command + "-restore", "-w", "--noflush"}, strings.NewReader(undo)); err != nil {
			return fmt.Errorf("unlock the network: %w", err)
		}
	}
	return nil
}
