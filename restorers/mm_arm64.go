package restorers

// TaskSize is the end of a task's address space with 48 bits of virtual addresses.
const TaskSize = 1 << 48
