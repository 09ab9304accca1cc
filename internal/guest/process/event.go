package process

import (
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Kind says what an Event is.
type Kind uint8

// The kinds of events.
const (
	Stdout Kind = iota + 1
	Stderr
	// Terminal is output of a process that has a terminal, which has no other.
	Terminal
	// Idle is no event of the process: nothing came for as long as the reader asked to
	// wait.
	Idle
	// Ended is the last event of every process.
	Ended
)

// Event is a piece of output, or the end of a process. Whoever gets one from a
// Subscription calls Release when done with Data.
type Event struct {
	Kind Kind
	Data []byte
	End  End
	from *buffer
}

// Release gives the memory behind Data back.
func (e Event) Release() {
	if e.from != nil {
		e.from.release()
	}
}

// End says how a process ended.
type End struct {
	// ExitCode is what the process exited with, -1 when a signal ended it.
	ExitCode int
	// Exited says that the process ended by itself.
	Exited bool
	// Status is the end in words: "exit status 1", "signal: killed".
	Status string
	// TimedOut says that it was killed because its limit had passed.
	TimedOut bool
}

func endOf(status unix.WaitStatus, timedOut bool) End {
	if status.Exited() {
		return End{ExitCode: status.ExitStatus(), Exited: true, Status: fmt.Sprintf("exit status %d", status.ExitStatus())}
	}
	end := End{ExitCode: -1, Status: "signal: " + status.Signal().String(), TimedOut: timedOut}
	if status.CoreDump() {
		end.Status += " (core dumped)"
	}
	return end
}

// Sizes of the pieces that output is read in, in bytes. The large one is used once a small
// one has come back full: then much is waiting, and fewer, larger pieces cost less. That of
// terminals is what their clients expect.
const (
	terminalBuffer = 16 << 10
	smallBuffer    = 32 << 10
	largeBuffer    = 256 << 10
)

var (
	terminalBuffers = bufferPool(terminalBuffer)
	smallBuffers    = bufferPool(smallBuffer)
	largeBuffers    = bufferPool(largeBuffer)
)

func bufferPool(size int) *sync.Pool {
	pool := new(sync.Pool)
	pool.New = func() any { return &buffer{data: make([]byte, size), home: pool} }
	return pool
}

// buffer is pooled memory that several subscribers may hold at once; the last one to let
// it go returns it to its pool. One that is never let go is garbage like any other.
type buffer struct {
	data []byte
	home *sync.Pool
	refs atomic.Int32
}

// newBuffer returns a buffer with one reference, the caller's.
func newBuffer(pool *sync.Pool) *buffer {
	b := pool.Get().(*buffer)
	b.refs.Store(1)
	return b
}

func (b *buffer) retain() { b.refs.Add(1) }

func (b *buffer) release() {
	if b.refs.Add(-1) == 0 {
		b.home.Put(b)
	}
}
