package process

import (
	"context"
	"errors"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// input is what a process reads: its stdin or its terminal. It is safe for concurrent use:
// writes go one after the other, and close interrupts one that waits.
type input struct {
	file *os.File // nil: the process has no input
	// shared says that the file is a terminal, whose output is still read after its input
	// has ended; it is closed elsewhere.
	shared bool
	closed atomic.Bool
	turn   chan struct{} // holds a token while nobody writes
}

func newInput(f *files) *input {
	in := &input{file: f.stdin, turn: make(chan struct{}, 1)}
	if f.master != nil {
		in.file, in.shared = f.master, true
	}
	in.turn <- struct{}{}
	return in
}

// interruption is a deadline that has passed.
var interruption = time.Unix(1, 0)

func (in *input) close() {
	in.closed.Store(true)
	switch {
	case in.file == nil:
	case in.shared:
		_ = in.file.SetWriteDeadline(interruption) // fails when the file is closed, which is as good
	default:
		_ = in.file.Close() // closing twice is fine and does nothing
	}
}

// WriteStdin writes data to the process's stdin, waiting while the process does not read.
func (p *Process) WriteStdin(ctx context.Context, data []byte) error {
	if err := p.hasStdin(); err != nil {
		return err
	}
	return p.write(ctx, data, "stdin")
}

// CloseStdin lets the process read the end of its input. Closing it again does nothing.
func (p *Process) CloseStdin() error {
	if p.files.master != nil {
		return fault.New(fault.Unknown, "the input of a terminal cannot be closed; type ^D (byte 4) to end what reads it")
	}
	if err := p.hasStdin(); err != nil {
		return err
	}
	p.input.close()
	return nil
}

func (p *Process) hasStdin() error {
	switch {
	case p.files.master != nil:
		return fault.New(fault.Internal, "process %d has a terminal; send the input as pty", p.pid)
	case p.files.stdin == nil:
		return fault.New(fault.Internal, "process %d was started without stdin", p.pid)
	}
	return nil
}

// write writes to the process's input, which is called name in errors.
func (p *Process) write(ctx context.Context, data []byte, name string) error {
	in := p.input
	select {
	case <-in.turn:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { in.turn <- struct{}{} }()

	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		_ = in.file.SetWriteDeadline(interruption)
	})
	_, err := in.file.Write(data)
	if !stop() {
		<-interrupted
		_ = in.file.SetWriteDeadline(time.Time{})
		if in.closed.Load() {
			in.close() // its own interruption may just have been taken away
		}
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrClosed), errors.Is(err, unix.EPIPE), errors.Is(err, unix.EIO), in.closed.Load():
		return fault.New(fault.Internal, "the %s of process %d is closed", name, p.pid)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return context.Cause(ctx)
	}
	return fault.Wrap(err, fault.Internal, "the %s of process %d could not be written", name, p.pid)
}
