package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
)

// loadUp is what a process that makes the load says when all of it is there.
const loadUp = "up"

// running is a load that runs.
type running interface {
	// describe says, once, how much came through.
	describe() string
	stop() error
}

// elsewhere is a load that another process makes, so that the clients of the load do not
// share a Go runtime with the client of the terminal: they are different people's.
type elsewhere struct {
	cmd   *exec.Cmd
	stdin io.Closer
	said  *bufio.Scanner
}

// loadElsewhere starts this program again to load what is at base.
func loadElsewhere(ctx context.Context, base string) (running, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self, "-load", base)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	e := &elsewhere{cmd, stdin, bufio.NewScanner(stdout)}
	if line := e.line(); line != loadUp {
		return nil, errors.Join(fmt.Errorf("the load did not come up: %q", line), e.stop())
	}
	return e, nil
}

func (e *elsewhere) line() string {
	e.said.Scan() // its end is an empty line
	return strings.TrimSpace(e.said.Text())
}

func (e *elsewhere) describe() string {
	_ = e.stdin.Close() // it may have ended
	return e.line()
}

func (e *elsewhere) stop() error {
	_ = e.stdin.Close() // twice does no harm
	return e.cmd.Wait()
}

// makeLoad is that process: it loads what is at base until its input ends.
func makeLoad(ctx context.Context, base string, in io.Reader, out io.Writer) error {
	client := newClient(nil)
	l, err := startLoad(ctx, way{client: client, sockets: client, base: base})
	if err != nil {
		return err
	}
	fmt.Fprintln(out, loadUp)
	_, err = io.Copy(io.Discard, in)
	fmt.Fprintln(out, l.describe())
	return errors.Join(err, l.stop())
}
