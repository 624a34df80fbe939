package wire

import "google.golang.org/protobuf/proto"

// Foreign says whether a message is left to package proto.
func Foreign(m proto.Message) bool {
	l, _ := of(m)
	return l.foreign != nil
}
