package guardian

import (
	"encoding/json"
	"fmt"

	"golang.org/x/sys/unix"
)

const (
	maxMessage = 64 << 10 // bytes of JSON
	maxFiles   = 16       // descriptors of one message; the kernel's limit is 253
)

// The operations of a message.
const (
	opRecord = "record"
	opFinish = "finish"
	opForget = "forget"
	opCommit = "commit"
	opClose  = "close"
)

// message is what the ward sends.
type message struct {
	Op   string          `json:"op"`
	ID   uint64          `json:"id,omitempty"`
	Kind string          `json:"kind,omitempty"`
	Data json.RawMessage `json:"data,omitempty"`
}

// send sends one message with descriptors. With MSG_DONTWAIT it returns unix.EAGAIN when the socket is full.
func send(sock int, m message, fds []int, flags int) error {
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(text) > maxMessage {
		return fmt.Errorf("a %s record of %d bytes is larger than %d", m.Kind, len(text), maxMessage)
	}
	if len(fds) > maxFiles {
		return fmt.Errorf("a %s record has %d descriptors, more than %d", m.Kind, len(fds), maxFiles)
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	for {
		if err = unix.Sendmsg(sock, text, rights, nil, unix.MSG_NOSIGNAL|flags); err != unix.EINTR {
			return err
		}
	}
}

// receive reads one message, without waiting. At the end of the socket it returns the zero message, and
// unix.EAGAIN when there is none now.
func receive(sock int) (m message, fds []int, err error) {
	text := make([]byte, maxMessage)
	rights := make([]byte, unix.CmsgSpace(maxFiles*4))
	var n, rn, flags int
	for {
		n, rn, flags, _, err = unix.Recvmsg(sock, text, rights, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil || n == 0 {
		return message{}, nil, err
	}
	fds, err = received(rights[:rn])
	if err == nil && flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		err = fmt.Errorf("a message was cut short (flags %#x)", flags)
	}
	if err == nil {
		err = json.Unmarshal(text[:n], &m)
	}
	if err != nil {
		closeAll(fds)
		return message{}, nil, err
	}
	return m, fds, nil
}

// received returns the descriptors of a control message, even if it returns an error as well.
func received(rights []byte) (fds []int, err error) {
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil {
		return nil, err
	}
	for _, c := range messages {
		more, err := unix.ParseUnixRights(&c)
		if err != nil {
			return fds, err
		}
		fds = append(fds, more...)
	}
	return fds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
