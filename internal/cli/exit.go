package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// Exit codes of our own, as env(1), timeout(1) and docker use them, so that they seldom
// meet those of the command that was run.
const (
	exitFindings = 1   // doctor found that something is lacking
	exitUsage    = 2   // called wrongly
	exitTimedOut = 124 // the command's time was up
	exitFailure  = 125 // Wrenn itself failed
	exitSignal   = 128 // plus the number of the signal
)

// statusError ends the program with a code that says all, or with a line about it.
type statusError struct {
	code    int
	message string // may be empty
}

func (e *statusError) Error() string {
	if e.message == "" {
		return fmt.Sprintf("exit status %d", e.code)
	}
	return e.message
}

// usageError is a mistake in how the program was called.
type usageError struct {
	message string
	command string // whose --help explains it
}

func (e *usageError) Error() string { return e.message }

func usageErrorf(cmd *cobra.Command, format string, args ...any) error {
	return &usageError{message: fmt.Sprintf(format, args...), command: cmd.CommandPath()}
}

// signalError is the cause of a context that a signal ended.
type signalError struct{ sig syscall.Signal }

func (e *signalError) Error() string { return "stopped by " + unix.SignalName(e.sig) }

// Execute runs the command that args name and returns the exit code. What failed is told
// on standard error. SIGINT, SIGTERM and SIGHUP end the command's context, so that it can
// clean up; a second one ends the program at once.
func Execute(ctx context.Context, root *cobra.Command, args []string) int {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer onSignals(cancel)()

	argumentsAreUsage(root)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	// What a command returns when it was stopped is only that it was; say by whom.
	var stopped *signalError
	if errors.As(context.Cause(ctx), &stopped) && errors.Is(err, context.Canceled) {
		err = stopped
	}
	asJSON, _ := root.PersistentFlags().GetBool("json")
	report(root.ErrOrStderr(), err, asJSON)
	return codeOf(err)
}

// argumentsAreUsage makes what the commands say about their arguments usage errors.
func argumentsAreUsage(cmd *cobra.Command) {
	for _, sub := range cmd.Commands() {
		argumentsAreUsage(sub)
	}
	check := cmd.Args
	if check == nil {
		return
	}
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usageErrorf(cmd, "%s", err)
		}
		return nil
	}
}

// onSignals ends a context with the first signal and gives the later ones back their
// default effect. The returned function stops listening.
func onSignals(cancel context.CancelCauseFunc) func() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	// Unhandled, a closed pipe at standard output would kill the program in the middle of
	// its clean-up (`wrenn run … | head`). Handled, the write returns EPIPE.
	pipe := make(chan os.Signal, 1)
	signal.Notify(pipe, syscall.SIGPIPE)

	done := make(chan struct{})
	go func() {
		select {
		case sig := <-signals:
			signal.Stop(signals)
			if s, ok := sig.(syscall.Signal); ok {
				cancel(&signalError{s})
			}
		case <-done:
		}
	}()
	return func() {
		close(done)
		signal.Stop(signals)
		signal.Stop(pipe)
	}
}

// outputGone reports whether err is that nobody reads our output any more. A broken
// connection to the server, which is EPIPE too, is no file's error.
func outputGone(err error) bool {
	var file *fs.PathError
	return errors.As(err, &file) && errors.Is(file, syscall.EPIPE)
}

func codeOf(err error) int {
	var status *statusError
	var usage *usageError
	var stopped *signalError
	switch {
	case errors.As(err, &status):
		return status.code
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &stopped):
		return exitSignal + int(stopped.sig)
	case outputGone(err):
		return exitSignal + int(syscall.SIGPIPE)
	}
	return exitFailure
}

func report(w io.Writer, err error, asJSON bool) {
	var status *statusError
	if errors.As(err, &status) && status.message == "" || outputGone(err) {
		return
	}
	if asJSON {
		var body struct {
			Error struct {
				Code    fault.Code `json:"code"`
				Message string     `json:"message"`
			} `json:"error"`
		}
		body.Error.Code, body.Error.Message = kindOf(err), err.Error()
		_ = json.NewEncoder(w).Encode(body) // there is nowhere else to tell it
		return
	}
	// An error joined of several is several lines; each says whose they are.
	for line := range strings.Lines(err.Error()) {
		fmt.Fprintf(w, "wrenn: %s\n", strings.TrimSuffix(line, "\n"))
	}
	var usage *usageError
	if errors.As(err, &usage) {
		fmt.Fprintf(w, "Run '%s --help' for usage.\n", usage.command)
	}
}

func kindOf(err error) fault.Code {
	var usage *usageError
	var stopped *signalError
	var status *statusError
	switch {
	case errors.As(err, &usage):
		return fault.InvalidRequest
	case errors.As(err, &stopped):
		return fault.Canceled
	case errors.As(err, &status) && status.code == exitTimedOut:
		return fault.DeadlineExceeded
	}
	return fault.CodeOf(err)
}
