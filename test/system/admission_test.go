package system_test

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

// A create, or a resume, for which there is no room is refused with the reason, or waits for
// as long as it was told to.
func TestAdmission(t *testing.T) {
	p := ownProgram(t, t.TempDir(), "--max-sandboxes", "1")
	first := newSandbox(t, p, nil)
	refused := func(what string, a answer, least, most time.Duration, began time.Time) {
		t.Helper()
		took := time.Since(began)
		if _, message := a.fault(t); a.status < http.StatusInternalServerError && a.status != http.StatusTooManyRequests || !strings.Contains(message, "sandboxes") || took < least || took > most {
			t.Errorf("%s: %d %s after %v", what, a.status, a.body, took)
		}
	}
	const atOnce, waited = 2 * time.Second, time.Second
	began := time.Now()
	refused("a create", p.call(t, http.MethodPost, "/v1/sandboxes", object{}), 0, atOnce, began)
	began = time.Now()
	refused("a create that waits", p.call(t, http.MethodPost, "/v1/sandboxes", object{"wait_sec": 1}), waited, waited+atOnce, began)

	// A paused sandbox takes no room, and makes room for who waits.
	created := make(chan answer, 1)
	go func() {
		a, err := p.try(t.Context(), http.MethodPost, "/v1/sandboxes", object{"wait_sec": 30})
		if err != nil {
			t.Error(err)
		}
		created <- a
	}()
	first.do(t, "/pause", nil, http.StatusOK)
	a := <-created
	if a.status != http.StatusCreated {
		t.Fatalf("who waited got %d: %s", a.status, a.body)
	}
	second := p.made(t, a.object(t))
	began = time.Now()
	refused("a resume", p.call(t, http.MethodPost, first.path("/resume"), nil), 0, atOnce, began)
	if status, _ := first.status(t); status != "paused" {
		t.Errorf("after a resume that was refused it is %s", status)
	}
	if a := p.call(t, http.MethodDelete, second.path(""), nil); a.status != http.StatusNoContent {
		t.Errorf("delete answered %d: %s", a.status, a.body)
	}
	first.do(t, "/resume", object{"wait_sec": 5}, http.StatusOK)
	if err := first.answers(t.Context(), settleLimit); err != nil {
		t.Error(err)
	}
}
