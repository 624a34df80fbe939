package ptrace

import (
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"

	"cryo/arch"
)

// Register set NT_ARM_SVE, and the part of its header (struct user_sve_header) that is of interest.
const (
	regSetSVE     = 0x405
	sveHeader     = 16
	sveFlags      = 12
	sveRegsSVE    = 1 // flag: the registers are in the SVE layout, that is in use
	sveMaxPayload = 0x12000
)

// getExtra reads thread pointer, keys of pointer authentication and SVE registers. EINVAL: the processor or kernel has no
// such set.
func getExtra(tid int, e *arch.Extra) error {
	var word [8]byte
	if _, err := GetRegSet(tid, RegSetTLS, word[:]); err != nil {
		return err
	}
	e.TLS = binary.LittleEndian.Uint64(word[:])
	var err error
	if e.PACA, err = optionalSet(tid, RegSetPACA, 64); err != nil {
		return err
	}
	if e.PACG, err = optionalSet(tid, RegSetPACG, 16); err != nil {
		return err
	}
	on, err := optionalSet(tid, RegSetPACOn, 8)
	if err != nil {
		return err
	}
	if len(on) == 8 {
		e.PACOn = binary.LittleEndian.Uint64(on)
	}
	header, err := optionalSet(tid, regSetSVE, sveHeader)
	if err != nil || len(header) < sveHeader || binary.LittleEndian.Uint16(header[sveFlags:])&sveRegsSVE == 0 {
		return err
	}
	e.SVE, err = optionalSet(tid, regSetSVE, sveMaxPayload)
	return err
}

// optionalSet reads a register set of at most size bytes, nil if there is none.
func optionalSet(tid, set, size int) ([]byte, error) {
	b := make([]byte, size)
	n, err := GetRegSet(tid, set, b)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENODEV) {
		return nil, nil
	}
	return b[:n], err
}

// setExtra writes what getExtra reads.
func setExtra(tid int, e *arch.Extra) error {
	if err := SetRegSet(tid, RegSetTLS, binary.LittleEndian.AppendUint64(nil, e.TLS)); err != nil {
		return err
	}
	if e.PACA != nil {
		if err := SetRegSet(tid, RegSetPACA, e.PACA); err != nil {
			return err
		}
		err := SetRegSet(tid, RegSetPACOn, binary.LittleEndian.AppendUint64(nil, e.PACOn))
		if err != nil && !errors.Is(err, unix.EINVAL) { // kernel 5.13
			return err
		}
	}
	if e.PACG != nil {
		if err := SetRegSet(tid, RegSetPACG, e.PACG); err != nil {
			return err
		}
	}
	return RestoreVolatile(tid, e)
}

// RestoreVolatile writes what of a thread's state the system calls of foreign code have destroyed besides general
// registers: what of the SVE registers is longer than 128 bits.
func RestoreVolatile(tid int, e *arch.Extra) error {
	if e.SVE == nil {
		return nil
	}
	return SetRegSet(tid, regSetSVE, e.SVE)
}
