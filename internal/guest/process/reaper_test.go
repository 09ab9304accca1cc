package process

import (
	"log/slog"
	"os/signal"
	"syscall"
	"testing"
)

// A kernel that loses the signal of an end must not make us lose the end.
func TestEndWithoutSignalIsFound(t *testing.T) {
	r := newReaper(false, slog.New(slog.DiscardHandler))
	defer r.close()
	signal.Stop(r.signals)
	_, exited, err := r.launch(func() (int, error) {
		return syscall.ForkExec("/bin/sh", []string{"sh", "-c", "exit 3"}, &syscall.ProcAttr{})
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := contextWithPatience()
	defer cancel()
	select {
	case status := <-exited:
		if status.ExitStatus() != 3 {
			t.Fatalf("exit code %d, want 3", status.ExitStatus())
		}
	case <-ctx.Done():
		t.Fatal("the end was not found")
	}
}
