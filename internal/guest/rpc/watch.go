package rpc

import (
	"context"
	"path/filepath"
	"strings"

	"connectrpc.com/connect"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/guest/filesystem/watch"
	filesystempb "github.com/wrenn-sandbox/wrenn/proto/guest/filesystem"
)

// WatchDir tells what changes in a directory until the client goes away.
func (s filesystemService) WatchDir(ctx context.Context, req *connect.Request[filesystempb.WatchDirRequest], stream *connect.ServerStream[filesystempb.WatchDirResponse]) error {
	path, _, err := s.resolve(req.Header(), req.Msg.GetPath())
	if err != nil {
		return err
	}
	watched, err := watch.Open(ctx, path, watch.Options{
		Recursive: req.Msg.GetRecursive(), NetworkMounts: req.Msg.GetAllowNetworkMounts(),
	})
	if err != nil {
		return err
	}
	defer watched.Close()
	idle := keepAlive(req.Header())
	out := &filesystempb.WatchDirResponse{Event: &filesystempb.WatchDirResponse_Start{Start: &filesystempb.WatchDirResponse_StartEvent{}}}
	if err := stream.Send(out); err != nil {
		return clientGone(err)
	}
	change := &filesystempb.WatchDirResponse_Filesystem{}
	for {
		events, err := watched.Next(ctx, idle)
		if err != nil {
			return err
		}
		if len(events) == 0 {
			out.Event = &filesystempb.WatchDirResponse_Keepalive{Keepalive: &filesystempb.WatchDirResponse_KeepAlive{}}
			if err := stream.Send(out); err != nil {
				return clientGone(err)
			}
			continue
		}
		for _, event := range events {
			change.Filesystem = s.event(path, event, req.Msg.GetIncludeEntry())
			out.Event = change
			if err := stream.Send(out); err != nil {
				return clientGone(err)
			}
		}
	}
}

// CreateWatcher begins to collect what changes in a directory.
func (s filesystemService) CreateWatcher(ctx context.Context, req *connect.Request[filesystempb.CreateWatcherRequest]) (*connect.Response[filesystempb.CreateWatcherResponse], error) {
	path, _, err := s.resolve(req.Header(), req.Msg.GetPath())
	if err != nil {
		return nil, err
	}
	id, err := s.server.watchers.Create(ctx, path, watch.Options{
		Recursive: req.Msg.GetRecursive(), NetworkMounts: req.Msg.GetAllowNetworkMounts(),
	}, req.Msg.GetIncludeEntry())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&filesystempb.CreateWatcherResponse{WatcherId: id}), nil
}

// GetWatcherEvents returns what a watcher has collected since it was last asked.
func (s filesystemService) GetWatcherEvents(_ context.Context, req *connect.Request[filesystempb.GetWatcherEventsRequest]) (*connect.Response[filesystempb.GetWatcherEventsResponse], error) {
	watcher, err := s.server.watchers.Find(req.Msg.GetWatcherId())
	if err != nil {
		return nil, err
	}
	events, err := watcher.Drain()
	if err != nil {
		return nil, err
	}
	out := &filesystempb.GetWatcherEventsResponse{Events: make([]*filesystempb.FilesystemEvent, 0, len(events))}
	for _, event := range events {
		out.Events = append(out.Events, s.event(watcher.Path, event, watcher.IncludeEntry))
	}
	return connect.NewResponse(out), nil
}

// RemoveWatcher ends a watcher.
func (s filesystemService) RemoveWatcher(_ context.Context, req *connect.Request[filesystempb.RemoveWatcherRequest]) (*connect.Response[filesystempb.RemoveWatcherResponse], error) {
	if err := s.server.watchers.Remove(req.Msg.GetWatcherId()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&filesystempb.RemoveWatcherResponse{}), nil
}

// event encodes one change below root. Its entry is what is there now, if anything is.
func (s filesystemService) event(root string, event watch.Event, includeEntry bool) *filesystempb.FilesystemEvent {
	out := &filesystempb.FilesystemEvent{Name: text(event.Name)}
	there := false
	switch event.Op {
	case watch.Create:
		out.Type, there = filesystempb.EventType_EVENT_TYPE_CREATE, true
	case watch.Write:
		out.Type, there = filesystempb.EventType_EVENT_TYPE_WRITE, true
	case watch.Chmod:
		out.Type, there = filesystempb.EventType_EVENT_TYPE_CHMOD, true
	case watch.Remove:
		out.Type = filesystempb.EventType_EVENT_TYPE_REMOVE
	case watch.Rename:
		out.Type = filesystempb.EventType_EVENT_TYPE_RENAME
	}
	if includeEntry && there {
		entry, err := s.server.files.Stat(filepath.Join(root, event.Name))
		switch {
		case err == nil:
			out.Entry = entryInfo(entry)
		case !fault.Is(err, fault.NotFound):
			s.server.logger.Debug("look at what a watcher saw", "err", err)
		}
	}
	return out
}

// text makes what the file system holds, which may be any bytes, fit for a message, whose
// texts must be UTF-8.
func text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
