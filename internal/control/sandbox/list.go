package sandbox

import (
	"context"
	"encoding/base64"
	"strconv"
	"strings"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// How many sandboxes List answers with.
const (
	DefaultPage = 100
	MaxPage     = 1000
)

// Query says which sandboxes to list. Zero fields do not filter.
type Query struct {
	Status   Status
	Template string
	Metadata map[string]string
	Limit    int    // 0: DefaultPage
	Cursor   string // Page.Next of the page before
}

// Page is a part of a list.
type Page struct {
	Sandboxes []Sandbox
	Next      string // the cursor of what follows; empty: nothing does
}

// List returns sandboxes, newest first.
func (s *Service) List(ctx context.Context, q Query) (Page, error) {
	if q.Limit == 0 {
		q.Limit = DefaultPage
	}
	if q.Limit < 0 || q.Limit > MaxPage {
		return Page{}, fault.New(fault.InvalidRequest, "parameter \"limit\" must be 1 to %d", MaxPage)
	}
	f := Filter{Status: q.Status, Template: q.Template, Metadata: q.Metadata, Limit: q.Limit + 1}
	if q.Cursor != "" {
		after, err := decodeCursor(q.Cursor)
		if err != nil {
			return Page{}, err
		}
		f.After = after
	}
	// One more than asked for tells whether there is a next page.
	found, err := s.store.List(ctx, f)
	if err != nil {
		return Page{}, err
	}
	var page Page
	if len(found) > q.Limit {
		found = found[:q.Limit]
		page.Next = encodeCursor(found[len(found)-1])
	}
	for i := range found {
		found[i] = s.activity.overlay(found[i])
	}
	page.Sandboxes = found
	return page, nil
}

// Get returns one sandbox.
func (s *Service) Get(ctx context.Context, id string) (Sandbox, error) {
	sb, err := s.store.Get(ctx, id)
	if err != nil {
		return Sandbox{}, err
	}
	return s.activity.overlay(sb), nil
}

// Ping counts as activity of a running sandbox.
func (s *Service) Ping(ctx context.Context, id string) error {
	if err := s.requireRunning(ctx, id); err != nil {
		return err
	}
	s.activity.touch(id)
	return nil
}

// A cursor is the position of the last sandbox that was seen: rows that come or go
// meanwhile neither repeat nor hide others.
func encodeCursor(sb Sandbox) string {
	return base64.RawURLEncoding.EncodeToString([]byte(strconv.FormatInt(sb.CreatedAt.UnixMicro(), 10) + " " + sb.ID))
}

func decodeCursor(cursor string) (Position, error) {
	bad := func(cause error) error {
		return fault.Wrap(cause, fault.InvalidRequest, "parameter \"cursor\" is not one that this server gave; take it from the header X-Next-Cursor, or leave it out to start anew")
	}
	raw, err := base64.RawURLEncoding.DecodeString(cursor)
	if err != nil {
		return Position{}, bad(err)
	}
	at, id, _ := strings.Cut(string(raw), " ")
	micros, err := strconv.ParseInt(at, 10, 64)
	if err != nil || id == "" {
		return Position{}, bad(err)
	}
	return Position{CreatedAt: time.UnixMicro(micros), ID: id}, nil
}
