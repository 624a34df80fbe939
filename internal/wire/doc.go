// Package wire encodes and decodes the generated messages of images, in the bytes of package proto.
//
// It is there because of what package proto does when a type of message is first used: it unpacks the description of
// the whole file and makes tables for reflection, 40 to 80 microseconds a type, and a set of a small process has fifty
// types. A command that lives for a few milliseconds spent half of them on that. This package reads the layout of a message
// from the tags of its Go struct, a few microseconds a type, and knows what messages of criu consist of: the scalars of
// proto2, strings, bytes, messages, and lists of them. A message with anything else (proto3, oneof, map, group, extension)
// is left to package proto.
//
// Encoded messages are the same byte for byte, fields in the order of their numbers; decoding accepts and refuses the same.
// Tests hold the two against each other over all types of images.
package wire
