package system_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// goneLimit is how long what an upload left may be there after a resume. An upload whose
// client has merely gone silent is given up after a minute.
const goneLimit = 15 * time.Second

// partial is what an upload is kept in while it is under way.
const partial = "find /home/wrenn-user -name '.wrenn-create-*'"

// cutUpload begins an upload, does something that cuts it off, and returns what its client
// was told.
func (s *sandbox) cutUpload(t *testing.T, cut func()) answer {
	t.Helper()
	content, rest := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	answered := make(chan answer, 1)
	go func() {
		a, _ := s.upload(ctx, "/home/wrenn-user/big", content)
		answered <- a
	}()
	go func() { _, _ = rest.Write(make([]byte, 4*mib)) }()
	eventually(t, settleLimit, func() error {
		if s.sh(t, partial) == "" {
			return errors.New("the upload has not begun")
		}
		return nil
	})
	cut()
	_ = rest.Close() // clients take an answer when all is sent
	select {
	case a := <-answered:
		return a
	case <-time.After(settleLimit):
		t.Fatal("the upload was not answered")
		return answer{}
	}
}

// isRidOfUploads waits until nothing is left of uploads.
func (s *sandbox) isRidOfUploads(t *testing.T) {
	t.Helper()
	eventually(t, goneLimit, func() error {
		if left := s.sh(t, partial); left != "" {
			return errors.New("there is still " + left)
		}
		return nil
	})
}

// An upload that a pause cuts off is told why, and leaves nothing behind; nor does it in a
// copy, whose guest it was not sent to.
func TestUploadsThatAreCutOff(t *testing.T) {
	s := newSandbox(t, theProgram(t), nil)
	a := s.cutUpload(t, func() { s.do(t, "/pause", nil, http.StatusOK) })
	if _, message := a.fault(t); a.status != http.StatusConflict || !strings.Contains(message, "paused") {
		t.Errorf("the upload was answered with %d: %s", a.status, a.body)
	}
	s.do(t, "/resume", nil, http.StatusOK)
	s.isRidOfUploads(t)

	var all []object
	s.cutUpload(t, func() {
		a := s.do(t, "/fork", object{"count": 1}, http.StatusCreated)
		if err := json.Unmarshal(a.body, &all); err != nil || len(all) != 1 {
			t.Fatalf("%s", a.body)
		}
	})
	s.p.made(t, all[0]).isRidOfUploads(t)
}
