// Package image is the codec of criu's image format v1.1 and the way into a set of images.
//
// An image is one or two magic numbers, then entries: a little-endian u32 size and a protobuf message of
// that size, some of them followed by raw bytes whose length the message tells (the payload). The messages
// are those of go-criu's crit/images packages; nothing is defined a second time here.
//
// Every kind of image is one row of the table in types.go: file name, magic, message, payload. A row is a
// typed value, so that reading and writing cannot mix messages up:
//
//	err := image.Write(set, image.Core, pid, core)          // core-PID.img
//	core, err := image.Read(src, image.Core, pid)           // the only entry
//	maps, err := image.ReadAll(src, image.RemapFpath, 0)    // all entries of an image without id
//	for e, err := range image.Entries(src, image.Files, 0)  // as a stream
//
// Payloads need the lower layer, Encoder and Decoder; page maps, whose size is bound by nothing but the
// target's memory, are read with ReadPagemap, one run at a time.
//
// A Source is where a set is read from (a directory, a stream). Whatever comes from it is untrusted: sizes
// and counts are bounded, memory grows with the bytes that are really there and not with what a length
// field says, no link is followed, and an error names file, entry and cause.
package image
