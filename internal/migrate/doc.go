// Package migrate is what the two sides of a live migration say to each other. It knows no process and no image.
//
// The source sends the memory of a running tree round after round, each to a set of its own at the destination, stops the
// tree, sends the rest, and has the destination build it up to its last moment. Then one of the two lets its tree run and
// the other ends its own.
//
//	source                              destination
//	hello (id, role)                    ok, or failed
//	round n                             ok: there is a directory for set n, which builds on set n-1
//	  on another connection: hello (id, role pages, n), and the messages of a page server
//	file (name, size), its bytes        -
//	restore n                           ready: the tree stands there, stopped; or failed
//	go                                  running, or failed
//	bye                                 -
//
// All but page-server messages and bytes of files is frames: a length (4 bytes, big endian) and a JSON object.
//
// # Exactly one
//
// Before it says go the source may always go on: a destination that loses the connection before it has read go ends its
// tree. After go the source has given the tree away and must not go on by itself, even if the connection breaks and it does
// not know whether go has arrived. It asks then, on a new connection (hello with role ask), until it is told: running, so it
// ends its tree, or failed, so it goes on. A destination therefore remembers how it ended until it is told bye.
package migrate
