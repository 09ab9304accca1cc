package process

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// input is the stdin of a process. It is safe for concurrent use: writes go one after the
// other, and close interrupts one that waits.
type input struct {
	file *os.File      // nil: the process has no stdin
	turn chan struct{} // holds a token while nobody writes
}

func newInput(f *os.File) *input {
	in := &input{file: f, turn: make(chan struct{}, 1)}
	in.turn <- struct{}{}
	return in
}

func (in *input) close() {
	if in.file != nil {
		_ = in.file.Close() // closing twice is fine and does nothing
	}
}

// WriteStdin writes data to the process's stdin, waiting while the process does not read.
func (p *Process) WriteStdin(ctx context.Context, data []byte) error {
	in := p.stdin
	if in.file == nil {
		return fault.New(fault.Internal, "process %d was started without stdin", p.pid)
	}
	select {
	case <-in.turn:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { in.turn <- struct{}{} }()

	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		_ = in.file.SetWriteDeadline(time.Unix(1, 0))
	})
	_, err := in.file.Write(data)
	if !stop() {
		<-interrupted
		_ = in.file.SetWriteDeadline(time.Time{})
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return context.Cause(ctx)
	case errors.Is(err, os.ErrClosed), errors.Is(err, unix.EPIPE):
		return fault.New(fault.Internal, "stdin of process %d is closed", p.pid)
	}
	return fault.Wrap(err, fault.Internal, "stdin of process %d could not be written", p.pid)
}

// CloseStdin lets the process read the end of its input. Closing it again does nothing.
func (p *Process) CloseStdin() error {
	if p.stdin.file == nil {
		return fault.New(fault.Internal, "process %d was started without stdin", p.pid)
	}
	p.stdin.close()
	return nil
}
