package image

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// A sealed set: every file of it is encrypted and authenticated with a key, and belongs to its name and to its set. A file is
//
//	8 bytes    sealMagic
//	16 bytes   the id of the set, random
//	16 bytes   salt of the file, random
//	chunks     64 KiB each but the last, each followed by the 16 bytes of its AES-256-GCM tag
//
// The key of a file comes from that of the user by HKDF-SHA256 with set id and salt as salt and the name as info. The nonce of a
// chunk is its number, and says whether it is the last: a file can neither be cut nor continued. The file manifest lists the
// names of all others, so none can be left out.
const (
	sealMagic   = "CRYOSEAL"
	sealHeader  = len(sealMagic) + 32
	sealChunk   = 64 << 10
	sealTag     = 16
	manifest    = "manifest.img"
	maxManifest = 64 << 20
)

// Key is what a set is sealed with.
type Key []byte

// minKey is the least number of bytes of a key, which should be random.
const minKey = 16

// ReadKey reads a key from a file, or from a descriptor by its name in /dev/fd. All bytes count.
func ReadKey(path string) (Key, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 1<<20))
	if err == nil && len(b) < minKey {
		err = fmt.Errorf("%s has %d bytes: a key has %d random ones at least", path, len(b), minKey)
	}
	if err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	return b, nil
}

// Seal is the writing side of one sealed set.
type Seal struct {
	key Key
	id  [16]byte
}

// NewSeal begins a set.
func NewSeal(key Key) *Seal {
	s := &Seal{key: key}
	rand.Read(s.id[:])
	return s
}

// Wrap makes a writer that seals what goes to w, which is closed with it.
func (s *Seal) Wrap(name string, w io.WriteCloser) (io.WriteCloser, error) {
	var salt [16]byte
	rand.Read(salt[:])
	aead, err := fileCipher(s.key, s.id[:], salt[:], name)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(slices.Concat([]byte(sealMagic), s.id[:], salt[:])); err != nil {
		return nil, err
	}
	return &sealer{w: w, aead: aead, buf: make([]byte, 0, sealChunk+sealTag)}, nil
}

// Manifest is the name and the content of the file that lists others.
func (s *Seal) Manifest(names []string) (string, []byte) {
	return manifest, []byte(strings.Join(names, "\n"))
}

func fileCipher(key Key, id, salt []byte, name string) (cipher.AEAD, error) {
	k, err := hkdf.Key(sha256.New, key, slices.Concat(id, salt), "cryo image file "+name, 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(k)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

func nonce(chunk uint64, last bool) []byte {
	n := make([]byte, 12)
	binary.BigEndian.PutUint64(n[4:], chunk)
	if last {
		n[0] = 1
	}
	return n
}

// sealer seals one file.
type sealer struct {
	w     io.WriteCloser
	aead  cipher.AEAD
	buf   []byte
	chunk uint64
}

func (s *sealer) Write(b []byte) (int, error) {
	for rest := b; len(rest) > 0; {
		if len(s.buf) == sealChunk {
			if err := s.flush(false); err != nil {
				return 0, err
			}
		}
		n := min(sealChunk-len(s.buf), len(rest))
		s.buf, rest = append(s.buf, rest[:n]...), rest[n:]
	}
	return len(b), nil
}

func (s *sealer) flush(last bool) error {
	_, err := s.w.Write(s.aead.Seal(s.buf[:0], nonce(s.chunk, last), s.buf, nil))
	s.buf, s.chunk = s.buf[:0], s.chunk+1
	return err
}

func (s *sealer) Close() error { return errors.Join(s.flush(true), s.w.Close()) }

// InIndex says whether a file belongs to the index of a set: what another one that builds on it has to read of it, which is
// the page maps, the inventory, and in a sealed set the list of all files.
func InIndex(name string) bool {
	return strings.HasPrefix(name, "pagemap-") || name == manifest || name == Inventory.File(0)
}

// Sealed says whether a set is one.
func Sealed(src Source) (bool, error) { return src.Exists(manifest) }

// ErrKey is what reading a sealed set fails with when the key is another, or the set was changed.
var ErrKey = errors.New("the key is another one, or the file was changed")

// Unseal makes a source of a sealed one. The key is tried at once.
func Unseal(src Source, key Key) (Source, error) {
	u := &unsealed{Source: src, key: key}
	f, err := src.Open(manifest)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is not encrypted, or not complete: leave --key-file out if it is to be read as it is", src)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var head [sealHeader]byte
	if _, err := io.ReadFull(f, head[:]); err != nil {
		return nil, fmt.Errorf("%s: %w", manifest, ErrKey)
	}
	u.id = head[len(sealMagic):][:16]
	r, err := u.reader(manifest, io.NopCloser(io.MultiReader(bytes.NewReader(head[:]), f)))
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(r, maxManifest))
	if err != nil {
		return nil, err
	}
	u.names = map[string]bool{}
	for _, name := range strings.Split(string(b), "\n") {
		u.names[name] = true
	}
	return u, nil
}

// unsealed is a sealed set that is being read.
type unsealed struct {
	Source
	key   Key
	id    []byte
	names map[string]bool
	kept  keptPages
	mu    sync.Mutex
	up    *unsealed // the parent, once it has been asked for
	lent  bool      // it is a parent, which the set that builds on it closes
}

// Exists knows files by the manifest.
func (u *unsealed) Exists(name string) (bool, error) { return u.names[name], nil }

// Open opens a file that the manifest names.
func (u *unsealed) Open(name string) (io.ReadCloser, error) {
	if !u.names[name] {
		return nil, &fs.PathError{Op: "open", Path: u.String() + "/" + name, Err: fs.ErrNotExist}
	}
	f, err := u.Source.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s/%s is missing from the set, which had it", u, name)
	}
	if err != nil {
		return nil, err
	}
	r, err := u.reader(name, f)
	if err != nil {
		f.Close()
	}
	return r, err
}

// reader reads what was sealed.
func (u *unsealed) reader(name string, f io.ReadCloser) (io.ReadCloser, error) {
	var head [sealHeader]byte
	if _, err := io.ReadFull(f, head[:]); err != nil || string(head[:len(sealMagic)]) != sealMagic {
		return nil, fmt.Errorf("%s/%s is not encrypted", u, name)
	}
	if !bytes.Equal(head[len(sealMagic):][:16], u.id) {
		return nil, fmt.Errorf("%s/%s is of another set", u, name)
	}
	aead, err := fileCipher(u.key, u.id, head[len(sealMagic)+16:], name)
	if err != nil {
		return nil, err
	}
	return &unsealer{f: f, aead: aead, name: u.String() + "/" + name, buf: make([]byte, sealChunk+sealTag)}, nil
}

// OpenPages unseals a pages file into memory: it is read here and there.
func (u *unsealed) OpenPages(id uint32) (*Pages, error) {
	name := PagesFile(id)
	if !u.names[name] {
		return nil, &fs.PathError{Op: "open", Path: u.String() + "/" + name, Err: fs.ErrNotExist}
	}
	in, err := u.Source.OpenPages(id)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	if in.Passing {
		return u.kept.get(id, func() (*Pages, error) { return u.unseal(name, in) })
	}
	return u.unseal(name, in)
}

// unseal makes the plain file of a pages file. One that is passing is given back meanwhile.
func (u *unsealed) unseal(name string, in *Pages) (*Pages, error) {
	r, err := u.reader(name, io.NopCloser(&releasing{pages: in}))
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("pages", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	out := os.NewFile(uintptr(fd), in.Name())
	n, err := io.CopyBuffer(struct{ io.Writer }{out}, r, make([]byte, sealChunk))
	if err != nil {
		out.Close()
		return nil, err
	}
	return &Pages{File: out, Size: n, Passing: in.Passing}, nil
}

// releasing reads a pages file from its start and gives back what has been read.
type releasing struct {
	pages *Pages
	off   int64
}

func (r *releasing) Read(b []byte) (int, error) {
	n, err := r.pages.ReadAt(b, r.off)
	const step = 1 << 20
	if done := (r.off + int64(n)) &^ (step - 1); done > r.off {
		r.pages.Release(r.off&^(step-1), done-r.off&^(step-1))
	}
	r.off += int64(n)
	return n, err
}

// Close gives up what was unsealed into memory, too. All who ask for a parent have the same one, which is closed with its child.
func (u *unsealed) Close() error {
	if u.lent {
		return nil
	}
	return u.end()
}

func (u *unsealed) end() error {
	var err error
	if u.up != nil {
		err = u.up.end()
	}
	u.kept.close()
	return errors.Join(err, u.Source.Close())
}

// Parent is sealed with the same key.
func (u *unsealed) Parent() (Source, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.up == nil {
		src, err := u.Source.Parent()
		if err != nil || src == nil {
			return src, err
		}
		up, err := Unseal(src, u.key)
		if err != nil {
			return nil, errors.Join(err, src.Close())
		}
		u.up = up.(*unsealed)
		u.up.lent = true
	}
	return u.up, nil
}

// unsealer reads one file.
type unsealer struct {
	f     io.ReadCloser
	aead  cipher.AEAD
	name  string
	buf   []byte
	plain []byte // of the chunk, not read yet
	have  int    // bytes of the next chunk that have been read already
	chunk uint64
	end   bool
}

func (u *unsealer) Read(b []byte) (int, error) {
	for len(u.plain) == 0 {
		if u.end {
			return 0, io.EOF
		}
		if err := u.next(); err != nil {
			return 0, err
		}
	}
	n := copy(b, u.plain)
	u.plain = u.plain[n:]
	return n, nil
}

// next opens a chunk. The last is the one that nothing follows.
func (u *unsealer) next() error {
	if u.chunk == 0 {
		n, err := io.ReadFull(u.f, u.buf)
		if u.have = n; err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			return err
		}
	}
	sealed := u.buf[:u.have]
	following := make([]byte, sealChunk+sealTag)
	n := 0
	if u.have == len(u.buf) {
		var err error
		if n, err = io.ReadFull(u.f, following); err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			return err
		}
	}
	u.end = n == 0
	plain, err := u.aead.Open(sealed[:0], nonce(u.chunk, u.end), sealed, nil)
	if err != nil {
		return fmt.Errorf("%s: %w", u.name, ErrKey)
	}
	u.plain, u.buf, u.have, u.chunk = plain, following, n, u.chunk+1
	return nil
}

func (u *unsealer) Close() error { return u.f.Close() }
