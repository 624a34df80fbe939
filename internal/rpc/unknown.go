package rpc

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"sync"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"google.golang.org/protobuf/encoding/protowire"
)

// optsField is the number of the field of a request that holds its options.
const optsField = 2

// knownFields are the numbers of all options of a request.
var knownFields = sync.OnceValue(func() map[protowire.Number]bool {
	known := map[protowire.Number]bool{}
	typ := reflect.TypeFor[rpc.CriuOpts]()
	for i := range typ.NumField() {
		tag := strings.Split(typ.Field(i).Tag.Get("protobuf"), ",") // wire type, number, ...
		if len(tag) > 1 {
			if n, err := strconv.Atoi(tag[1]); err == nil {
				known[protowire.Number(n)] = true
			}
		}
	}
	return known
})

// refuseUnknown refuses a well-formed request with options that only a later version of the protocol has: to do without
// what the client wants is not for us to decide.
func refuseUnknown(msg []byte) error {
	return eachField(msg, func(n protowire.Number, value []byte) error {
		if n != optsField || value == nil {
			return nil
		}
		return eachField(value, func(n protowire.Number, _ []byte) error {
			if !knownFields()[n] {
				return fmt.Errorf("option %d is not known to this version", n)
			}
			return nil
		})
	})
}

// eachField calls do with the fields of a message, and the bytes of those that have some.
func eachField(msg []byte, do func(protowire.Number, []byte) error) error {
	for len(msg) > 0 {
		n, typ, size := protowire.ConsumeTag(msg)
		if size < 0 {
			return protowire.ParseError(size)
		}
		msg = msg[size:]
		var value []byte
		if typ == protowire.BytesType {
			value, size = protowire.ConsumeBytes(msg)
		} else {
			size = protowire.ConsumeFieldValue(n, typ, msg)
		}
		if size < 0 {
			return protowire.ParseError(size)
		}
		if err := do(n, value); err != nil {
			return err
		}
		msg = msg[size:]
	}
	return nil
}
