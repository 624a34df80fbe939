// Package rpc serves criu's RPC protocol (rpc.proto of criu 4.2, the types of go-criu): container engines and libraries
// drive the tool through it.
//
// A client sends requests over a connected unix socket of type SOCK_SEQPACKET, one message a packet, and gets one answer
// each. In between the server may tell it of the phases of the work, and waits for its word each time. `criu swrk` serves
// one client that is its parent and shares descriptors with it; `criu service` lets anybody connect.
//
// What a client sends is untrusted: packets and what they hold are bounded, and a request that cannot be understood is
// answered by one line that says why. If a client goes away before the point of no return, its work is cancelled and taken
// back.
//
// The package knows how to talk, and what a request means as options; the work itself is handed to it as functions, by
// [Server]. It touches no image. Descriptors of the client are opened through /proc of its pid, which the kernel vouches for
// (SO_PEERCRED).
package rpc
