package sinks_test

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"cryo/internal/image"
	"cryo/internal/pagexfer"
	"cryo/sinks"
)

// loopback gives both ends of a TCP connection.
func loopback(t testing.TB) (client, server net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if client, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if server, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

// checkServed: the page maps at the server tell of the same runs as the golden ones and its pages files hold the
// same bytes; only the numbers of the files differ.
func checkServed(t *testing.T, dir string) {
	t.Helper()
	want, got := openSet(t, golden), openSet(t, dir)
	for _, o := range goldenObjects(t, want) {
		w, err := image.ReadPagemap(want, o.kind, o.id)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		g, err := image.ReadPagemap(got, o.kind, o.id)
		if err != nil {
			t.Fatal(err)
		}
		defer g.Close()
		for run := range w.Runs() {
			if r, err := g.Next(); err != nil || r != run {
				t.Errorf("object %v: run %+v, %v; want %+v", o, r, err, run)
			}
		}
		wb, err := os.ReadFile(filepath.Join(golden, image.PagesFile(w.PagesID)))
		if err != nil {
			t.Fatal(err)
		}
		gb, err := os.ReadFile(filepath.Join(dir, image.PagesFile(g.PagesID)))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(wb, gb) {
			t.Errorf("object %v: %d bytes of pages differ from the %d sent", o, len(gb), len(wb))
		}
	}
}

func TestPageServer(t *testing.T) {
	client, server := loopback(t)
	at, meta := t.TempDir(), t.TempDir()
	done := make(chan error, 1)
	store := newDir(t, at, sinks.DirOptions{PagesOnly: true, FirstPages: sinks.ServerPagesBase})
	go func() {
		_, err := sinks.ServePages(server, store)
		done <- err
	}()
	src := openSet(t, golden)
	to := sinks.NewPageServer(newDir(t, meta, sinks.DirOptions{}), client, false)
	if has, err := to.HasParent(image.TaskPages, 1); has || err != nil {
		t.Errorf("a parent that is not there: %v, %v", has, err)
	}
	copyMetadata(t, golden, to, isPages)
	copyPages(t, src, to)
	if err := to.Commit(readInventory(t, src)); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	checkServed(t, at)
	if _, err := os.Stat(filepath.Join(at, "pages-65537.img")); err != nil {
		t.Error(err)
	}
}

// A client that dies leaves nothing at the server, and one whose server dies gets one clear error and no set.
func TestPageServerBroken(t *testing.T) {
	client, server := loopback(t)
	at, meta := t.TempDir(), t.TempDir()
	store := newDir(t, at, sinks.DirOptions{PagesOnly: true})
	done := make(chan error, 1)
	go func() {
		_, err := sinks.ServePages(server, store)
		done <- err
	}()
	to := sinks.NewPageServer(newDir(t, meta, sinks.DirOptions{}), client, false)
	p, err := to.Pagemap(image.TaskPages, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Add(0x1000, 4, image.PEPresent); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Write(make([]byte, 5*image.PageSize)); err == nil {
		t.Error("more bytes than announced were taken")
	}
	if _, err := p.Write(make([]byte, image.PageSize)); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err == nil {
		t.Error("a page map without all its bytes was closed without a word")
	}
	if err := to.Abort(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err == nil {
		t.Error("the server took half a page map for a whole one")
	}
	if left, _ := os.ReadDir(at); len(left) != 0 {
		t.Errorf("the server kept %v", names(left))
	}

	client, server = loopback(t)
	server.Close()
	to = sinks.NewPageServer(newDir(t, meta, sinks.DirOptions{}), client, false)
	if err := to.Commit(readInventory(t, openSet(t, golden))); err == nil || !strings.Contains(err.Error(), "page server") {
		t.Errorf("commit without a server: %v", err)
	}
	if _, err := os.Stat(filepath.Join(meta, "inventory.img")); err == nil {
		t.Error("there is an inventory though the server had no last word")
	}
}

// Clients up to criu 4.1 have a shorter message.
func TestPageServerOldClient(t *testing.T) {
	client, server := loopback(t)
	at := t.TempDir()
	store := newDir(t, at, sinks.DirOptions{PagesOnly: true})
	done := make(chan error, 1)
	go func() {
		_, err := sinks.ServePages(server, store)
		done <- err
	}()
	old := func(m pagexfer.Msg) []byte {
		b := m.Append(nil)
		return append(append(bytes.Clone(b[:4]), b[8:12]...), b[16:]...)
	}
	object := pagexfer.Object(image.TaskPages, 5)
	page := bytes.Repeat([]byte("x"), image.PageSize)
	var all []byte
	all = append(all, old(pagexfer.Msg{Cmd: pagexfer.Open2, Object: object})...)
	all = append(all, old(pagexfer.Msg{Cmd: pagexfer.Add, Pages: 1, Addr: 0x7000, Object: object})...)
	all = append(all, page...)
	all = append(all, old(pagexfer.Msg{Cmd: pagexfer.Close})...)
	if _, err := client.Write(all); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(filepath.Join(at, "pages-1.img")); !bytes.Equal(b, page) {
		t.Error("the page did not arrive")
	}
}

// criuPeer is a criu binary to work with, or the test is skipped.
func criuPeer(t *testing.T) string {
	peer := os.Getenv("CRIU_PEER")
	if peer == "" {
		t.Skip("CRIU_PEER names no criu binary")
	}
	return peer
}

// Our client, criu's server.
func TestPageServerOfCriu(t *testing.T) {
	peer := criuPeer(t)
	at, meta := t.TempDir(), t.TempDir()
	client, server := loopback(t)
	sock, err := server.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	server.Close()
	cmd := exec.Command(peer, "page-server", "-D", at, "--ps-socket", "3", "-v4", "-o", "ps.log")
	cmd.ExtraFiles = []*os.File{sock}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	sock.Close()
	src := openSet(t, golden)
	to := sinks.NewPageServer(newDir(t, meta, sinks.DirOptions{}), client, true)
	copyPages(t, src, to)
	if err := to.Commit(readInventory(t, src)); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		log, _ := os.ReadFile(filepath.Join(at, "ps.log"))
		t.Fatalf("criu page-server: %v\n%s", err, log)
	}
	checkServed(t, at)
}

// criu's client, our server: the pages of a real dump, which criu then restores.
func TestPageServerForCriu(t *testing.T) {
	peer := criuPeer(t)
	dir := t.TempDir()
	client, server := loopback(t)
	sock, err := client.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	client.Close()
	store := newDir(t, dir, sinks.DirOptions{PagesOnly: true, FirstPages: sinks.ServerPagesBase})
	done := make(chan error, 1)
	go func() {
		_, err := sinks.ServePages(server, store)
		done <- err
	}()
	target := exec.Command("sleep", "1000")
	target.SysProcAttr = newSession()
	if err := target.Start(); err != nil {
		t.Fatal(err)
	}
	defer target.Process.Kill()
	cmd := exec.Command(peer, "dump", "-t", itoa(target.Process.Pid), "-D", dir, "--page-server", "--ps-socket", "3", "-v4", "-o", "dump.log")
	cmd.ExtraFiles = []*os.File{sock}
	out, err := cmd.CombinedOutput()
	sock.Close()
	if err != nil {
		log, _ := os.ReadFile(filepath.Join(dir, "dump.log"))
		t.Fatalf("criu dump: %v\n%s%s", err, out, log)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	target.Wait()
	cmd = exec.Command(peer, "restore", "-D", dir, "-d", "-v4", "-o", "restore.log")
	if out, err := cmd.CombinedOutput(); err != nil {
		log, _ := os.ReadFile(filepath.Join(dir, "restore.log"))
		t.Fatalf("criu restore: %v\n%s%s", err, out, log)
	}
	defer killWait(target.Process.Pid)
	if comm, _ := os.ReadFile("/proc/" + itoa(target.Process.Pid) + "/comm"); string(comm) != "sleep\n" {
		t.Errorf("what was restored is %q", comm)
	}
}
