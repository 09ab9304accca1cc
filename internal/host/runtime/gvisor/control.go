package gvisor

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// What the sentry's control server is asked for. Calls that start or end a sandbox are
// runsc's; these concern a running one only, and as a program each would cost ten times
// as much.
const (
	callPause      = "containerManager.Pause"
	callResume     = "containerManager.Resume"
	callCheckpoint = "containerManager.Checkpoint"
	callStacks     = "debug.Stacks"
	callCgroups    = "Cgroups.ReadControlFiles"
	callNothing    = "Logging.Change" // with no change
)

// maxAnswer bounds what is read of one answer, in bytes. The largest are stacks, some
// kilobytes for each task of the guest.
const maxAnswer = 64 << 20

// control is a connection to the control server of one sentry. gVisor calls the protocol
// urpc: one JSON object asks, one answers, and files travel beside the first byte. It is
// for one call at a time.
//
// The sentry finishes a call that it has begun whether or not anybody waits for it, so a
// call has no context: who goes away does not know what became of it.
type control struct {
	id   string
	conn *net.UnixConn
}

// dial connects to a sandbox's sentry.
func (d *Driver) dial(id string) (*control, error) {
	address := net.UnixAddr{Net: "unix", Name: filepath.Join(d.stateDir(), "runsc-"+id+".sock")}
	conn, err := net.DialUnix("unix", nil, &address)
	if err != nil {
		return nil, fault.Wrap(err, fault.NotFound, "sandbox %s does not run", id)
	}
	return &control{id, conn}, nil
}

func (c *control) close() { _ = c.conn.Close() }

// failed says why a call did: fault.NotFound when the sentry has ended, under the call or
// before it.
func (c *control) failed(method string, err error) error {
	for _, end := range []error{io.EOF, io.ErrUnexpectedEOF, unix.ECONNRESET, unix.EPIPE} {
		if errors.Is(err, end) {
			return fault.Wrap(err, fault.NotFound, "sandbox %s does not run", c.id)
		}
	}
	return fmt.Errorf("%s: %w", method, err)
}

// sentryError is what a sentry says of a call that it could not carry out.
type sentryError string

func (e sentryError) Error() string { return "the sentry says: " + string(e) }

// call calls a method with an argument and files, and decodes its result unless that is
// nil. It fails when the answer takes longer than limit.
func (c *control) call(method string, arg, result any, files []*os.File, limit time.Duration) error {
	request, err := json.Marshal(struct {
		Method string `json:"method"`
		Arg    any    `json:"arg"`
	}{method, arg})
	if err != nil {
		return err
	}
	if err := c.conn.SetDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	var rights []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		rights = unix.UnixRights(fds...)
	}
	n, _, err := c.conn.WriteMsgUnix(request, rights, nil)
	if err == nil && n < len(request) {
		_, err = c.conn.Write(request[n:])
	}
	if err != nil {
		return c.failed(method, err)
	}
	var answer struct {
		Success bool            `json:"success"`
		Err     string          `json:"err"`
		Result  json.RawMessage `json:"result"`
	}
	if err := json.NewDecoder(io.LimitReader(c.conn, maxAnswer)).Decode(&answer); err != nil {
		return c.failed(method, err)
	}
	if !answer.Success {
		return fmt.Errorf("%s: %w", method, sentryError(answer.Err))
	}
	if result == nil || len(answer.Result) == 0 || bytes.Equal(answer.Result, []byte("null")) {
		return nil
	}
	if err := json.Unmarshal(answer.Result, result); err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	return nil
}
