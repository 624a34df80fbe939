package sinks_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"cryo/internal/pagexfer"
	"cryo/sinks"
)

// selfSigned makes one certificate that is everybody's, authority and all.
func selfSigned(t *testing.T) pagexfer.TLS {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	cert, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := func(name, typ string, b []byte) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: b}), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	c := file("cert.pem", "CERTIFICATE", cert)
	return pagexfer.TLS{CACert: c, Cert: c, Key: file("key.pem", "EC PRIVATE KEY", private), AnyName: true}
}

// sendGolden sends the pages of the golden set through a protected connection.
func sendGolden(t *testing.T, safe pagexfer.TLS, client net.Conn, borrowed bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := safe.Client(ctx, client, "")
	if err != nil {
		t.Fatal(err)
	}
	src := openSet(t, golden)
	to := sinks.NewPageServer(newDir(t, t.TempDir(), sinks.DirOptions{}), conn, borrowed)
	copyPages(t, src, to)
	if err := to.Commit(readInventory(t, src)); err != nil {
		t.Fatal(err)
	}
}

func TestPageServerTLS(t *testing.T) {
	safe := selfSigned(t)
	client, server := loopback(t)
	at := t.TempDir()
	store := newDir(t, at, sinks.DirOptions{PagesOnly: true})
	done := make(chan error, 1)
	go func() {
		conn, err := safe.Server(context.Background(), server)
		if err == nil {
			_, err = sinks.ServePages(conn, store)
		}
		done <- err
	}()
	sendGolden(t, safe, client, false)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	checkServed(t, at)
}

// criu counts records, so it is the one to try with.
func TestPageServerTLSOfCriu(t *testing.T) {
	peer := criuPeer(t)
	safe := selfSigned(t)
	at := t.TempDir()
	client, server := loopback(t)
	sock, err := server.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	server.Close()
	cmd := exec.Command(peer, "page-server", "-D", at, "--ps-socket", "3", "-v4", "-o", "ps.log",
		"--tls", "--tls-no-cn-verify", "--tls-cacert", safe.CACert, "--tls-cert", safe.Cert, "--tls-key", safe.Key)
	cmd.ExtraFiles = []*os.File{sock}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	sock.Close()
	client.SetDeadline(time.Now().Add(time.Minute))
	sendGolden(t, safe, client, true)
	if err := cmd.Wait(); err != nil {
		log, _ := os.ReadFile(filepath.Join(at, "ps.log"))
		t.Fatalf("criu page-server: %v\n%s", err, log)
	}
	checkServed(t, at)
}
