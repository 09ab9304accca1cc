package fault

import (
	"encoding/json"
	"io"
	"net/http"
)

var statuses = map[Code]int{
	InvalidRequest:   http.StatusBadRequest,
	Unauthorized:     http.StatusUnauthorized,
	Forbidden:        http.StatusForbidden,
	NotFound:         http.StatusNotFound,
	MethodNotAllowed: http.StatusMethodNotAllowed,
	NotAcceptable:    http.StatusNotAcceptable,
	Conflict:         http.StatusConflict,
	InvalidState:     http.StatusConflict,
	PayloadTooLarge:  http.StatusRequestEntityTooLarge,
	RateLimited:      http.StatusTooManyRequests,
	Canceled:         499,
	Internal:         http.StatusInternalServerError,
	Unknown:          http.StatusInternalServerError,
	NotImplemented:   http.StatusNotImplemented,
	AgentError:       http.StatusBadGateway,
	HostUnavailable:  http.StatusServiceUnavailable,
	DeadlineExceeded: http.StatusGatewayTimeout,
	NoSpace:          http.StatusInsufficientStorage,
}

// HTTPStatus returns the status that an error with this code answers with.
func HTTPStatus(code Code) int {
	if s, ok := statuses[code]; ok {
		return s
	}
	return http.StatusInternalServerError
}

// body is the shape of every error of the native API and of the host's plain HTTP paths.
type body struct {
	Error struct {
		Code    Code   `json:"code"`
		Message string `json:"message"`
	} `json:"error"`
}

// WriteHTTP answers err as {"error":{"code","message"}} with its status. Nothing may
// have been written to w before.
func WriteHTTP(w http.ResponseWriter, err error) {
	var b body
	b.Error.Code, b.Error.Message = CodeOf(err), MessageOf(err)
	w.Header().Del("Content-Length")
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(HTTPStatus(b.Error.Code))
	_ = json.NewEncoder(w).Encode(b) // the client may be gone; there is nobody left to tell
}

// maxErrorBody bounds what ReadHTTP reads of an error's body, in bytes.
const maxErrorBody = 64 << 10

// ReadHTTP is the other end of WriteHTTP: it turns a response with an error status into
// an error, reading but not closing its body. A body of another shape becomes an
// AgentError that names the status.
func ReadHTTP(resp *http.Response) error {
	var b body
	err := json.NewDecoder(io.LimitReader(resp.Body, maxErrorBody)).Decode(&b)
	if _, known := statuses[b.Error.Code]; err != nil || !known {
		return New(AgentError, "unexpected answer %q", resp.Status)
	}
	return New(b.Error.Code, "%s", b.Error.Message)
}
