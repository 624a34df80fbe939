package migrate

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
)

// Version is that of the protocol; both sides must have the same.
const Version = 1

// Op says what a message is.
type Op string

// The messages.
const (
	Hello   Op = "hello"
	OK      Op = "ok"
	Failed  Op = "failed"
	Round   Op = "round"
	File    Op = "file"
	Restore Op = "restore"
	Ready   Op = "ready"
	Go      Op = "go"
	Running Op = "running"
	Bye     Op = "bye"
)

// Role is what a connection is for.
type Role string

// The roles.
const (
	Control Role = "control"
	Pages   Role = "pages"
	Ask     Role = "ask"
)

// Message is one of the protocol; which fields it has depends on Op.
type Message struct {
	Op      Op
	Version int    `json:",omitempty"` // of Hello
	ID      string `json:",omitempty"` // of Hello: names the migration, and is known to its two sides only
	Role    Role   `json:",omitempty"` // of Hello
	Round   int    `json:",omitempty"` // of Hello for Pages, Round, Restore
	Name    string `json:",omitempty"` // of File
	Size    int64  `json:",omitempty"` // of File, bytes
	PID     int    `json:",omitempty"` // of Running: the root at the destination
	Cause   string `json:",omitempty"` // of Failed
}

// maxMessage bounds a message; the largest is a cause.
const maxMessage = 64 << 10

// Send sends a message.
func Send(w io.Writer, m Message) error {
	if len(m.Cause) > maxMessage/8 {
		m.Cause = m.Cause[:maxMessage/8]
	}
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
	return err
}

// Receive reads a message and no byte more.
func Receive(r io.Reader) (Message, error) {
	var m Message
	var n [4]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return m, err
	}
	size := binary.BigEndian.Uint32(n[:])
	if size > maxMessage {
		return m, fmt.Errorf("a message of %d bytes is none of a migration", size)
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(r, b); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return m, err
	}
	return m, json.Unmarshal(b, &m)
}

// RefusedError is what the other side could not do, and says why.
type RefusedError struct{ Cause string }

func (e *RefusedError) Error() string { return "the destination refuses: " + e.Cause }

// Expect reads a message that must be of one kind. A Failed one is a RefusedError.
func Expect(r io.Reader, op Op) (Message, error) {
	m, err := Receive(r)
	switch {
	case err != nil:
		return m, err
	case m.Op == Failed:
		return m, &RefusedError{m.Cause}
	case m.Op != op:
		return m, fmt.Errorf("the other side says %q where it should say %q", m.Op, op)
	}
	return m, nil
}

// Greet says what a new connection is for, and waits for the answer that hello has.
func Greet(conn net.Conn, m Message, answer Op) (Message, error) {
	m.Op, m.Version = Hello, Version
	if err := Send(conn, m); err != nil {
		return Message{}, err
	}
	return Expect(conn, answer)
}

// Greeted reads the first message of a new connection.
func Greeted(conn net.Conn) (Message, error) {
	m, err := Expect(conn, Hello)
	if err == nil && m.Version != Version {
		err = fmt.Errorf("it speaks version %d of the migration protocol, this program %d", m.Version, Version)
	}
	if err == nil && len(m.ID) < 16 {
		err = errors.New("its migration has no proper id")
	}
	return m, err
}
