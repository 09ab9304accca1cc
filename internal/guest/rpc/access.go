package rpc

import (
	"context"
	"encoding/base64"
	"net/http"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/guest/identity"
	"github.com/wrenn-sandbox/wrenn/proto/guest/process/processconnect"
)

// tokenHeader carries the access token of a secured sandbox.
const tokenHeader = "X-Access-Token"

// crossOrigin lets pages of every origin in, and answers their preflights: what protects a
// sandbox is its token, not the browser.
func crossOrigin(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Origin") == "" {
			next.ServeHTTP(w, r)
			return
		}
		header := w.Header()
		header.Set("Access-Control-Allow-Origin", "*")
		header.Set("Access-Control-Expose-Headers", "*")
		if r.Method != http.MethodOptions || r.Header.Get("Access-Control-Request-Method") == "" {
			next.ServeHTTP(w, r)
			return
		}
		header.Set("Access-Control-Allow-Methods", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")
		// Named one by one: a * does not stand for Authorization.
		if asked := r.Header.Get("Access-Control-Request-Headers"); asked != "" {
			header.Set("Access-Control-Allow-Headers", asked)
		}
		header.Set("Access-Control-Max-Age", "7200")
		w.WriteHeader(http.StatusNoContent)
	})
}

// requireToken refuses requests without the access token, once one is set. Some paths have
// rules of their own: /health has none, /init may bring the first token, and /files can be
// opened by a signature.
func (s *Server) requireToken(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !hasOwnAccess(r) && !s.identity.Authorized(r.Header.Get(tokenHeader)) {
			writeError(w, fault.New(fault.Unauthorized,
				"unauthorized access, please provide a valid access token or method signing if supported"))
			return
		}
		next.ServeHTTP(w, r)
	})
}

// hasOwnAccess says whether a request is for a path that decides itself who may ask.
func hasOwnAccess(r *http.Request) bool {
	switch r.Method + " " + r.URL.Path {
	case "GET /health", "GET /files", "POST /files", "POST /init":
		return true
	}
	return false
}

// What a signed link may be for.
const (
	signedRead  = "read"
	signedWrite = "write"
)

// fileAccess says whether a request may reach the file that it names: by the access token,
// or by a signature that somebody made who has it. The texts are what the SDKs know.
func (s *Server) fileAccess(r *http.Request, operation string) error {
	token, query := r.Header.Get(tokenHeader), r.URL.Query()
	switch {
	case s.identity.Authorized(token):
		return nil
	case token != "":
		return fault.New(fault.Unauthorized, "access token present in header but does not match")
	case query.Get("signature") == "":
		return fault.New(fault.Unauthorized, "missing signature query parameter")
	}
	signed := identity.Signed{Path: query.Get("path"), Username: query.Get("username"), Operation: operation}
	if query.Has("signature_expiration") {
		seconds, err := strconv.ParseInt(query.Get("signature_expiration"), 10, 64)
		if err != nil {
			return fault.New(fault.InvalidRequest, "the query parameter 'signature_expiration' is not a number of seconds")
		}
		signed.Expiration = &seconds
	}
	if !s.identity.SignedBy(query.Get("signature"), signed) {
		return fault.New(fault.Unauthorized, "invalid signature")
	}
	if signed.Expiration != nil && *signed.Expiration < time.Now().Unix() {
		return fault.New(fault.Unauthorized, "signature is already expired")
	}
	return nil
}

// fileUser returns whose file a request means: the user that its query names, or else the
// default. Basic authorization names nobody's files, but who has the token must not send
// nonsense there; to a link it may have been added by anything on the way.
func (s *Server) fileUser(r *http.Request) (identity.User, error) {
	if s.identity.Authorized(r.Header.Get(tokenHeader)) {
		if err := s.checkUser(r.Header); err != nil {
			return identity.User{}, err
		}
	}
	return s.lookUp(r.URL.Query().Get("username"))
}

// lookUp is for the paths that answer for an unknown user in these words.
func (s *Server) lookUp(name string) (identity.User, error) {
	user, err := s.identity.User(name)
	if fault.Is(err, fault.Unauthorized) {
		err = fault.Wrap(err, fault.Unauthorized, "error looking up user '%s': no such user in this sandbox", name)
	}
	return user, err
}

// requireUser refuses requests whose basic authorization names nobody, also where no user
// is needed. The paths that requireToken lets pass look at it themselves, or not at all.
func (s *Server) requireUser(next http.Handler, rpcErrors *connect.ErrorWriter) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if hasOwnAccess(r) {
			next.ServeHTTP(w, r)
			return
		}
		err := s.checkUser(r.Header)
		switch {
		case err == nil:
			next.ServeHTTP(w, r)
		case isRPC(r.URL.Path):
			_ = rpcErrors.Write(w, r, fault.ToConnect(err)) // the client may be gone
		default:
			writeError(w, err)
		}
	})
}

// checkUser says whether the user of the basic authorization exists, if there is one.
func (s *Server) checkUser(header http.Header) error {
	name, err := basicUser(header)
	if err != nil || name == "" {
		return err
	}
	_, err = s.identity.User(name)
	return err
}

// user returns the account that an RPC is to act as: the one of its basic authorization,
// whose password means nothing, or the default user.
func (s *Server) user(header http.Header) (identity.User, error) {
	name, err := basicUser(header)
	if err != nil {
		return identity.User{}, err
	}
	return s.identity.User(name)
}

// basicUser returns the user of the basic authorization, "" when there is none.
func basicUser(header http.Header) (string, error) {
	scheme, encoded, _ := strings.Cut(header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Basic") {
		return "", nil
	}
	decoded, err := base64.StdEncoding.DecodeString(strings.TrimSpace(encoded))
	if err != nil {
		return "", fault.Wrap(err, fault.Unauthorized, "the user cannot be read; basic authorization is the base64 of 'user:password'")
	}
	name, _, _ := strings.Cut(string(decoded), ":")
	return name, nil
}

// timeoutHeader is how a Connect client says how long it will wait, in milliseconds.
const timeoutHeader = "Connect-Timeout-Ms"

// maxTimeoutDigits is how long the Connect protocol lets that number be.
const maxTimeoutDigits = 10

type limitKey struct{}

// takeLimit makes the timeout of a Start the limit of the process that it starts. Connect
// would end the request when it passes, and with it the stream, while the process went
// on; so Connect must not see it. Nonsense is left to Connect to refuse.
func takeLimit(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == processconnect.ProcessStartProcedure {
			text := r.Header.Get(timeoutHeader)
			ms, err := strconv.ParseUint(text, 10, 64)
			if err == nil && len(text) <= maxTimeoutDigits {
				r.Header.Del(timeoutHeader)
				limit := time.Duration(ms) * time.Millisecond
				r = r.WithContext(context.WithValue(r.Context(), limitKey{}, limit))
			}
		}
		next.ServeHTTP(w, r)
	})
}

// limitOf returns the limit that takeLimit found, 0 when there is none.
func limitOf(ctx context.Context) time.Duration {
	limit, _ := ctx.Value(limitKey{}).(time.Duration)
	return limit
}
