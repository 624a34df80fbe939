package pagexfer

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
)

// TLS protects a connection as criu's --tls does: both ends show a certificate, and both check the other's against
// the authority. The fields are files in PEM; empty ones mean criu's places, see the constants.
type TLS struct {
	CACert string // whom to trust; empty: the system's authorities too
	CACRL  string // certificates that are trusted no more
	Cert   string // our own
	Key    string
	// AnyName leaves the server's name unchecked.
	AnyName bool
}

const (
	defaultCACert = "/etc/pki/CA/cacert.pem"
	defaultCACRL  = "/etc/pki/CA/cacrl.pem"
	defaultCert   = "/etc/pki/criu/cert.pem"
	defaultKey    = "/etc/pki/criu/private/key.pem"
)

// Record is the most that one TLS record carries. criu's page server reads a message as one record, and takes page
// bytes record by record into steps of 64 KiB: a message has to be written by itself, and page bytes so that no record
// crosses a multiple of Record, counted from the first byte of the run.
const Record = 16 << 10

// Client makes conn the client's end of a protected connection to host.
func (t TLS) Client(ctx context.Context, conn net.Conn, host string) (net.Conn, error) {
	if t.AnyName {
		host = ""
	}
	cfg, err := t.config(host)
	if err != nil {
		return nil, err
	}
	return shake(ctx, tls.Client(conn, cfg))
}

// Server makes conn the server's end. The client's name is not checked: whoever the authority vouches for may come.
func (t TLS) Server(ctx context.Context, conn net.Conn) (net.Conn, error) {
	cfg, err := t.config("")
	if err != nil {
		return nil, err
	}
	cfg.ClientAuth = tls.RequireAnyClientCert
	return shake(ctx, tls.Server(conn, cfg))
}

func shake(ctx context.Context, c *tls.Conn) (net.Conn, error) {
	if err := c.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("TLS with %s: %w", c.RemoteAddr(), err)
	}
	return c, nil
}

// config reads the files. The standard checks of a certificate do not fit, for criu's peers need neither name a purpose
// nor an alternative name in theirs, so they are replaced and not left out.
func (t TLS) config(host string) (*tls.Config, error) {
	own, err := tls.LoadX509KeyPair(or(t.Cert, defaultCert), or(t.Key, defaultKey))
	if err != nil {
		return nil, fmt.Errorf("TLS certificate: %w", err)
	}
	roots, authorities, err := t.trusted()
	if err != nil {
		return nil, err
	}
	revoked, err := t.revoked(authorities)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		Certificates:       []tls.Certificate{own},
		MinVersion:         tls.VersionTLS12,
		InsecureSkipVerify: true, // VerifyConnection does it
		// criu's end takes a session ticket, which comes after the handshake, for an error.
		SessionTicketsDisabled: true,
		// Records of equal size; see Record.
		DynamicRecordSizingDisabled: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			return verify(cs.PeerCertificates, roots, revoked, host)
		},
	}, nil
}

func or(name, place string) string {
	if name == "" {
		return place
	}
	return name
}

// trusted reads the authorities.
func (t TLS) trusted() (*x509.CertPool, []*x509.Certificate, error) {
	pool := x509.NewCertPool()
	if t.CACert == "" {
		if system, err := x509.SystemCertPool(); err == nil {
			pool = system
		}
	}
	b, err := os.ReadFile(or(t.CACert, defaultCACert))
	if t.CACert == "" && errors.Is(err, fs.ErrNotExist) {
		return pool, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("TLS authority: %w", err)
	}
	var all []*x509.Certificate
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, nil, fmt.Errorf("TLS authority %s: %w", or(t.CACert, defaultCACert), err)
		}
		pool.AddCert(c)
		all = append(all, c)
	}
	if len(all) == 0 {
		return nil, nil, fmt.Errorf("TLS authority %s: there is no certificate in it", or(t.CACert, defaultCACert))
	}
	return pool, all, nil
}

// revoked reads the revocation list, which one of the authorities must have signed.
func (t TLS) revoked(authorities []*x509.Certificate) (*x509.RevocationList, error) {
	name := or(t.CACRL, defaultCACRL)
	b, err := os.ReadFile(name)
	if t.CACRL == "" && errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("TLS revocation list: %w", err)
	}
	if block, _ := pem.Decode(b); block != nil {
		b = block.Bytes
	}
	list, err := x509.ParseRevocationList(b)
	if err != nil {
		return nil, fmt.Errorf("TLS revocation list %s: %w", name, err)
	}
	for _, a := range authorities {
		if list.CheckSignatureFrom(a) == nil {
			return list, nil
		}
	}
	return nil, fmt.Errorf("TLS revocation list %s: none of the authorities signed it", name)
}

// verify checks the certificates a peer showed, its own first.
func verify(chain []*x509.Certificate, roots *x509.CertPool, revoked *x509.RevocationList, host string) error {
	if len(chain) == 0 {
		return errors.New("the peer shows no certificate")
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	opts := x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
	if _, err := chain[0].Verify(opts); err != nil {
		return fmt.Errorf("the peer's certificate: %w", err)
	}
	if revoked != nil {
		for _, r := range revoked.RevokedCertificateEntries {
			if r.SerialNumber.Cmp(chain[0].SerialNumber) == 0 {
				return errors.New("the peer's certificate was revoked")
			}
		}
	}
	// Certificates made for this purpose often have a common name only.
	if host == "" || chain[0].Subject.CommonName == host && len(chain[0].DNSNames)+len(chain[0].IPAddresses) == 0 {
		return nil
	}
	if err := chain[0].VerifyHostname(host); err != nil {
		return fmt.Errorf("the peer's certificate: %w (--tls-no-cn-verify leaves the name unchecked)", err)
	}
	return nil
}
