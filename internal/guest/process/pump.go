package process

import (
	"errors"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// pump carries what the process writes into f to the subscribers. It returns when f is
// closed by all who can write to it, or when the process has ended, its grace is over and
// what was in f has been read; the rest then drains on its own.
func (p *Process) pump(f *os.File, kind Kind) {
	first, pool := smallBuffers, smallBuffers
	if kind == Terminal {
		first, pool = terminalBuffers, terminalBuffers
	}
	var flow flow
	for last := false; ; {
		b, n, err := read(f, pool)
		if n > 0 {
			full := n == len(b.data)
			p.output.publish(kind, b, n)
			pool = first
			if kind == Terminal {
				continue
			}
			wait := flow.gather(n, time.Now())
			if full || wait > 0 {
				pool = largeBuffers
			}
			if !full && wait > 0 {
				p.letGather(wait)
			}
			continue
		}
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded):
			p.pumpRest(f, kind)
			p.manager.drain(f)
			return
		case errors.Is(err, unix.EIO) && kind == Terminal && !last:
			last = p.awaitReopening()
		default:
			_ = f.Close()
			return
		}
	}
}

const (
	// bulk is the least piece of output, in bytes, that is one of much: programs that print
	// as fast as they can write their buffers, whose usual size this is. Answers and
	// progress are smaller, and somebody waits for them.
	bulk = 4 << 10
	// gatherWithin is how soon a piece has to follow the one before to be one of a flow.
	gatherWithin = time.Millisecond
	// maxGather and minGather bound how long a flow gathers; sleeping less is not possible.
	maxGather = 500 * time.Microsecond
	minGather = 150 * time.Microsecond
)

// flow knows how fast output comes in pieces. Each piece costs several switches between
// processes, and the more of them where a switch is slow, as it is in gVisor: there it is
// that which bounds the output of a command, and not the copying.
type flow struct{ before time.Time }

// gather returns how long to let output gather before it is read again, when a piece of n
// bytes has come now. It is so long that the pipe gets half full and the writer does not
// have to wait.
func (f *flow) gather(n int, now time.Time) time.Duration {
	since := now.Sub(f.before)
	f.before = now
	if n < bulk || since >= gatherWithin {
		return 0
	}
	wait := min(maxGather, since*(pipeSize/2)/time.Duration(n))
	if wait < minGather {
		return 0
	}
	return wait
}

// maxGathering is how many flows gather at once. Where more of them run the processors are
// busy anyway, and those that gathered would take much more than the others get.
const maxGathering = 2

// letGather waits, unless enough others do: nobody waits for his turn to wait.
func (p *Process) letGather(wait time.Duration) {
	if !p.manager.gathering.TryAcquire(1) {
		return
	}
	defer p.manager.gathering.Release(1)
	select {
	case <-time.After(wait):
	case <-p.gone: // nothing more comes
	}
}

// pumpRest publishes what is in f now. It is bounded by what a pipe can hold, since a
// descendant may be writing faster than it is read.
func (p *Process) pumpRest(f *os.File, kind Kind) {
	_ = f.SetReadDeadline(time.Time{})
	pool := largeBuffers
	if kind == Terminal {
		pool = terminalBuffers
	}
	for rest := pipeSize; rest > 0; {
		b := newBuffer(pool)
		n := 0
		if raw, err := f.SyscallConn(); err == nil {
			_ = raw.Read(func(fd uintptr) bool {
				n, _ = readRetry(int(fd), b.data)
				return true // never wait
			})
		}
		if n <= 0 {
			b.release()
			return
		}
		rest -= n
		p.output.publish(kind, b, n)
	}
}

// read waits until f has something and reads it. Memory is taken only then: a process that
// prints nothing costs none.
func read(f *os.File, pool *sync.Pool) (*buffer, int, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, 0, err
	}
	var b *buffer
	var n int
	var readErr error
	err = raw.Read(func(fd uintptr) bool {
		b = newBuffer(pool)
		n, readErr = readRetry(int(fd), b.data)
		if n > 0 {
			return true
		}
		b.release()
		b = nil
		return !errors.Is(readErr, unix.EAGAIN)
	})
	switch {
	case err != nil:
		return nil, 0, err
	case readErr != nil:
		return nil, 0, readErr
	case n == 0:
		return nil, 0, io.EOF
	}
	return b, n, nil
}

func readRetry(fd int, buf []byte) (int, error) {
	for {
		n, err := syscall.Read(fd, buf)
		if !errors.Is(err, syscall.EINTR) {
			return n, err
		}
	}
}

// drain reads f to its end and forgets what it reads. Closing f instead would kill, by
// SIGPIPE, the very background process that outlived the command which started it.
func (m *Manager) drain(f *os.File) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		_ = f.Close()
		return
	}
	m.lingering[f] = struct{}{}
	m.wg.Go(func() {
		for {
			b, _, err := read(f, smallBuffers)
			if err != nil {
				break
			}
			b.release()
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.lingering, f)
		_ = f.Close()
	})
}

func (m *Manager) closeLingering() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for f := range m.lingering {
		_ = f.Close()
	}
}
