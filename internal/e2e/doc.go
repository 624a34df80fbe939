// Package e2e is the end-to-end test harness: it starts real programs, dumps
// them with the commands as a user would, proves that they are gone, restores
// them and asks their own verdict.
//
// A workload (testdata/workloads/*.c) holds one kind of kernel state and
// speaks the little protocol of workload.h: it creates "ready" when its state
// stands, waits for "go", checks itself and leaves "verdict". The harness runs
// each through every mode; a new kind of object needs a workload and one row
// in the table of workloads_test.go.
//
// The commands are built once per run, or named by CRYO_BIN (a directory).
// CRIU_PEER names a criu binary for the interop tests, which are skipped
// without it.
package e2e
