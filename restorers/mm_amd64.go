package restorers

// TaskSize is the end of a task's address space with four levels of page tables. The kernel gives no mapping above it
// unless asked with an address there, which criu's images never hold.
const TaskSize = 1<<47 - 4096
