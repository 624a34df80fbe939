// Package userfaultfd is the message of userfaultfd.img, which criu has not: see userfaultfd.proto.
package userfaultfd

//go:generate protoc --go_out=. --go_opt=paths=source_relative userfaultfd.proto
