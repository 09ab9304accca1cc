package rpc

import (
	"net/http"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	filesystempb "github.com/wrenn-sandbox/wrenn/proto/guest/filesystem"
	"github.com/wrenn-sandbox/wrenn/proto/guest/filesystem/filesystemconnect"
	processpb "github.com/wrenn-sandbox/wrenn/proto/guest/process"
	"github.com/wrenn-sandbox/wrenn/proto/guest/process/processconnect"
)

// routes returns everything that is served, by its path.
func (s *Server) routes(options []connect.HandlerOption) *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(http.StatusNoContent)
	})
	mux.Handle("POST /init", prompt(requestIdle, s.answer(s.init)))
	mux.Handle("POST /snapshot/prepare", s.answer(s.prepareSnapshot))
	mux.Handle("GET /metrics", s.answer(s.metrics))
	mux.Handle("GET /envs", s.answer(s.envs))
	mux.Handle("GET /ports", s.answer(s.listPorts))
	mux.Handle("GET /files", s.answer(s.download))
	mux.Handle("POST /files", s.answer(s.upload))
	mux.Handle("POST /files/compose", prompt(requestIdle, s.answer(s.compose)))

	prefix, handler := processconnect.NewProcessHandler(processService{server: s}, options...)
	handleMethods(mux, processpb.File_guest_process_process_proto, prefix, joinLast(handler))
	prefix, handler = filesystemconnect.NewFilesystemHandler(filesystemService{server: s}, options...)
	handleMethods(mux, filesystempb.File_guest_filesystem_filesystem_proto, prefix, handler)
	return mux
}

// handleMethods gives each method of the one service in file a path of its own, so that the
// mux knows which there are.
func handleMethods(mux *http.ServeMux, file protoreflect.FileDescriptor, prefix string, handler http.Handler) {
	methods := file.Services().Get(0).Methods()
	for i := range methods.Len() {
		method := methods.Get(i)
		serve := handler
		if !method.IsStreamingClient() {
			serve = prompt(requestIdle, handler)
		}
		mux.Handle("POST "+prefix+string(method.Name()), serve)
	}
}

// isRPC says whether a path is one of the Connect services.
func isRPC(path string) bool {
	return strings.HasPrefix(path, "/"+processconnect.ProcessName+"/") || strings.HasPrefix(path, "/"+filesystemconnect.FilesystemName+"/")
}

// explained answers what the mux knows no route for in the same shape as every other error;
// the mux itself answers with bare text.
func explained(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		refuse, pattern := mux.Handler(r)
		if pattern != "" {
			mux.ServeHTTP(w, r)
			return
		}
		// It knows which methods there are instead.
		said := refusal{}
		refuse.ServeHTTP(said, r)
		allow := http.Header(said).Get("Allow")
		if allow == "" {
			writeError(w, fault.New(fault.NotFound, "there is nothing at '%s'", r.URL.Path))
			return
		}
		w.Header().Set("Allow", allow)
		writeError(w, fault.New(fault.MethodNotAllowed, "'%s' cannot be asked with %s; use %s", r.URL.Path, r.Method, allow))
	})
}

// refusal is a ResponseWriter that takes the headers of an answer and nothing else.
type refusal http.Header

func (r refusal) Header() http.Header       { return http.Header(r) }
func (refusal) Write(p []byte) (int, error) { return len(p), nil }
func (refusal) WriteHeader(int)             {}
