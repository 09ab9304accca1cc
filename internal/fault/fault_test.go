package fault

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http/httptest"
	"testing"

	"connectrpc.com/connect"
)

func TestCodesSurviveBothTransports(t *testing.T) {
	for code := range statuses {
		want := New(code, "what was wrong with %s", code)

		back := FromConnect(ToConnect(fmt.Errorf("deep: %w", want)))
		if CodeOf(back) != code || MessageOf(back) != want.Message() {
			t.Errorf("%s over Connect came back as %s %q", code, CodeOf(back), MessageOf(back))
		}
		rec := httptest.NewRecorder()
		WriteHTTP(rec, want)
		back = ReadHTTP(rec.Result())
		if CodeOf(back) != code || MessageOf(back) != want.Message() {
			t.Errorf("%s over HTTP came back as %s %q", code, CodeOf(back), MessageOf(back))
		}
		if _, ok := connectCodes[code]; !ok {
			t.Errorf("%s has no Connect code", code)
		}
	}
}

func TestCauseStaysHidden(t *testing.T) {
	err := Wrap(errors.New("password=hunter2"), NotFound, "no such sandbox")
	if MessageOf(err) != "no such sandbox" || err.Error() != "no such sandbox: password=hunter2" {
		t.Fatalf("message %q, log text %q", MessageOf(err), err)
	}
	if got := MessageOf(io.ErrUnexpectedEOF); got != "internal error; the server's log has the details" {
		t.Fatalf("a plain error shows %q to the public", got)
	}
}

func TestContextErrors(t *testing.T) {
	if CodeOf(fmt.Errorf("read: %w", context.Canceled)) != Canceled || CodeOf(context.DeadlineExceeded) != DeadlineExceeded {
		t.Fatal("context errors have no code of their own")
	}
}

func TestStreamEndIsNotAnError(t *testing.T) {
	if !errors.Is(FromConnect(io.EOF), io.EOF) || FromConnect(nil) != nil || ToConnect(nil) != nil {
		t.Fatal("the end of a stream or no error became an error")
	}
	foreign := connect.NewError(connect.CodeNotFound, errors.New("guest says no"))
	if CodeOf(FromConnect(foreign)) != NotFound {
		t.Fatal("a Connect error of a foreign server lost its meaning")
	}
}
