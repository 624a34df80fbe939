// Package crit shows images as JSON and makes images of JSON, as criu's tool crit does and with the same text, so
// that either tool reads what the other wrote.
//
//	{"magic": "CORE", "entries": [{...}, ...]}
//
// An entry is the message, field by field in the order of the numbers, bytes in base64 and enumerations by name.
// "extra" holds the payload of an entry. With Pretty, fields that criu's definitions mark as hexadecimal, device,
// flags, address or enumeration of the kernel's are written that way, as strings; encoding takes both. An image
// decoded and encoded again is the same bytes.
//
// Both directions hold one entry at a time, so page maps and ghost files of any size can be shown.
package crit
