package pagexfer

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// authority makes certificates.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string
}

func write(t *testing.T, typ string, b []byte) string {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "*.pem")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := pem.Encode(f, &pem.Block{Type: typ, Bytes: b}); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

func newAuthority(t *testing.T) *authority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{t: t, key: key}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SubjectKeyId: []byte{1, 2, 3},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	a.cert, _ = x509.ParseCertificate(der)
	a.file = write(t, "CERTIFICATE", der)
	return a
}

// issue makes a certificate with a common name and nothing else, as criu's users do.
func (a *authority) issue(serial int64, name string) TLS {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	b, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	return TLS{CACert: a.file, Cert: write(a.t, "CERTIFICATE", der), Key: write(a.t, "EC PRIVATE KEY", b)}
}

func (a *authority) revoke(serial int64) string {
	a.t.Helper()
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour),
		RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: big.NewInt(serial), RevocationTime: time.Now()}},
	}, a.cert, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return write(a.t, "X509 CRL", der)
}

// loopback gives both ends of a connection that buffers, as an alert must not wait for its reader.
func loopback(t *testing.T) (net.Conn, net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	a, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func TestTLS(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	server, client := ca.issue(2, "server"), ca.issue(3, "client")
	revoking := server
	revoking.CACRL = ca.revoke(3)
	anyName := client
	anyName.AnyName = true
	stranger := other.issue(4, "client")
	stranger.CACert = ca.file
	missing := client
	missing.Key = filepath.Join(t.TempDir(), "none")
	for _, c := range []struct {
		name           string
		server, client TLS
		host, want     string
	}{
		{"good", server, client, "server", ""},
		{"another name", server, client, "elsewhere", "--tls-no-cn-verify"},
		{"another name, not checked", server, anyName, "elsewhere", ""},
		{"another authority", server, stranger, "server", "unknown authority"},
		{"revoked", revoking, client, "server", "revoked"},
		{"no key", server, missing, "server", "no such file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := loopback(t)
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			served := make(chan error, 1)
			go func() {
				conn, err := c.server.Server(ctx, a)
				if err == nil {
					_, err = io.Copy(conn, conn)
				}
				a.Close()
				served <- err
			}()
			conn, err := c.client.Client(ctx, b, c.host)
			if err == nil {
				buf := make([]byte, 5)
				if _, err = conn.Write([]byte("hello")); err == nil {
					_, err = io.ReadFull(conn, buf)
				}
				conn.Close()
			}
			b.Close()
			both := ""
			if serr := <-served; serr != nil {
				both = serr.Error()
			}
			if err != nil {
				both += err.Error()
			}
			if c.want == "" && err != nil || !strings.Contains(both, c.want) {
				t.Errorf("errors %q, want %q", both, c.want)
			}
		})
	}
}
