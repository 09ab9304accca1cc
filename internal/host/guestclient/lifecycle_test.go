package guestclient

import (
	"context"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// What waits for a guest that is put to rest ends at once, and says why.
func TestClosingSaysWhy(t *testing.T) {
	c := startEnvd(t)
	reason := fault.New(fault.InvalidState, "the sandbox was paused")
	started, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- c.Start(t.Context(), Command{Cmd: "sleep", Args: []string{"60"}, Tag: "sleeper"}, func(e Event) error {
			if _, ok := e.(Started); ok {
				close(started)
			}
			return nil
		})
	}()
	<-started
	if err := c.Signal(t.Context(), Selector{Tag: "nobody"}, true); err == nil {
		t.Error("a signal to nobody")
	}
	c.CloseFor(reason)
	select {
	case err := <-done:
		if !fault.Is(err, fault.InvalidState) || fault.MessageOf(err) != reason.Message() {
			t.Errorf("the stream ended with %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the stream goes on")
	}
	for call, err := range c.calls(t.Context()) {
		if fault.MessageOf(err) != reason.Message() {
			t.Errorf("%s after the close: %v", call, err)
		}
	}
}

// A guest that says nothing for a moment, as one that has just come back, is asked again;
// one that refuses is not.
func TestInitIsTriedAgain(t *testing.T) {
	var asked atomic.Int32
	c := hostile(t, func(w http.ResponseWriter, _ *http.Request) {
		switch asked.Add(1) {
		case 1, 2:
			panic(http.ErrAbortHandler) // the connection breaks
		case 3:
			w.WriteHeader(http.StatusNoContent)
		default:
			w.WriteHeader(http.StatusForbidden)
			_, _ = w.Write([]byte(`{"message":"no"}`))
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := c.Init(ctx, Init{}); err != nil || asked.Load() != 3 {
		t.Errorf("after %d attempts: %v", asked.Load(), err)
	}
	if err := c.Init(ctx, Init{}); !fault.Is(err, fault.Forbidden) || asked.Load() != 4 {
		t.Errorf("after %d attempts: %v", asked.Load(), err)
	}
	gone := New(c.conns.address, "token")
	gone.Close()
	began := time.Now()
	short, stop := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer stop()
	if err := gone.Init(short, Init{}); err == nil || time.Since(began) > 5*time.Second {
		t.Errorf("a guest that is gone: %v", err)
	}
}

func TestPrepareAndWake(t *testing.T) {
	c := startEnvd(t)
	for _, live := range []bool{true, false} {
		if err := c.Prepare(t.Context(), live); err != nil {
			t.Fatalf("live %v: %v", live, err)
		}
		if err := c.Init(t.Context(), Init{AccessToken: c.token, Timestamp: time.Now()}); err != nil {
			t.Fatal(err)
		}
	}
}
