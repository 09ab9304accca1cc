package httpapi

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

const (
	// maxJSON is the size of the largest JSON body, in bytes.
	maxJSON  = 8 << 20
	jsonType = "application/json"
	formType = "multipart/form-data"
)

// validator holds requests against the API's description before a handler sees them.
type validator struct {
	// operations is by the pattern of the route, such as "GET /v1/sandboxes/{id}".
	operations map[string]operation
}

type operation struct {
	id         string
	parameters openapi3.Parameters
	body       *openapi3.RequestBody // nil: none
}

func newValidator(description []byte) (*validator, error) {
	doc, err := openapi3.NewLoader().LoadFromData(description)
	if err != nil {
		return nil, err
	}
	if err := doc.Validate(context.Background(), openapi3.DisableExamplesValidation()); err != nil {
		return nil, err
	}
	v := &validator{operations: make(map[string]operation)}
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			o := operation{id: op.OperationID, parameters: append(append(openapi3.Parameters{}, item.Parameters...), op.Parameters...)}
			if op.RequestBody != nil {
				o.body = op.RequestBody.Value
			}
			v.operations[method+" "+path] = o
		}
	}
	return v, nil
}

func (v *validator) middleware(fail failer) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if err := v.check(w, r); err != nil {
				fail.write(w, r, err)
				return
			}
			next.ServeHTTP(w, withExchange(w, r))
		})
	}
}

type exchangeKey struct{}

// exchange is a request and where its answer goes.
type exchange struct {
	r *http.Request
	w http.ResponseWriter
}

// withExchange lets handlers see what typed parameters cannot show: parameters whose name
// is not fixed, and the length and the pace of a body that streams.
func withExchange(w http.ResponseWriter, r *http.Request) *http.Request {
	return r.WithContext(context.WithValue(r.Context(), exchangeKey{}, exchange{r, w}))
}

func query(ctx context.Context) url.Values {
	if e, ok := ctx.Value(exchangeKey{}).(exchange); ok {
		return e.r.URL.Query()
	}
	return nil
}

// bodySize is the length of the request's body, -1 when it is unknown.
func bodySize(ctx context.Context) int64 {
	if e, ok := ctx.Value(exchangeKey{}).(exchange); ok {
		return e.r.ContentLength
	}
	return -1
}

// limitBody makes reads of the request's body fail when d has passed.
func limitBody(ctx context.Context, d time.Duration) {
	if e, ok := ctx.Value(exchangeKey{}).(exchange); ok {
		_ = http.NewResponseController(e.w).SetReadDeadline(time.Now().Add(d)) // where there are deadlines
	}
}

// openParameters begin the names of query parameters that are not fixed, by operation.
var openParameters = map[string]string{"listSandboxes": "metadata."}

// checkNames refuses query parameters that the operation does not know: a filter that is
// mistyped would otherwise select everything.
func (op operation) checkNames(r *http.Request) error {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return fault.Wrap(err, fault.InvalidRequest, "the query cannot be read: %v", err)
	}
	for name := range q {
		known := slices.ContainsFunc(op.parameters, func(p *openapi3.ParameterRef) bool {
			return p.Value.In == openapi3.ParameterInQuery && p.Value.Name == name
		})
		prefix := openParameters[op.id]
		if !known && (prefix == "" || !strings.HasPrefix(name, prefix) || name == prefix) {
			return fault.New(fault.InvalidRequest, "there is no parameter %q here", name)
		}
	}
	return nil
}

// check returns what is wrong with a request. A JSON body is read, and put back; any
// other is left unread.
func (v *validator) check(w http.ResponseWriter, r *http.Request) error {
	op, ok := v.operations[r.Pattern]
	if !ok {
		return fmt.Errorf("route %q is not described", r.Pattern)
	}
	if err := op.checkNames(r); err != nil {
		return err
	}
	input := &openapi3filter.RequestValidationInput{Request: r, PathParams: make(map[string]string)}
	for _, p := range op.parameters {
		if p.Value.In == openapi3.ParameterInPath {
			input.PathParams[p.Value.Name] = r.PathValue(p.Value.Name)
		}
		if err := openapi3filter.ValidateParameter(r.Context(), input, p.Value); err != nil {
			return parameterFault(p.Value, err)
		}
	}
	if op.body == nil {
		return nil
	}
	mediaType, err := contentType(r)
	if err != nil {
		return err
	}
	if media := op.body.Content[mediaType]; media == nil {
		return wrongType(r, op.body.Content)
	} else if mediaType == jsonType {
		return checkJSON(w, r, op.body.Required, media.Schema.Value)
	}
	if mediaType == formType {
		// A form is read in small steps, each of which would be a system call.
		r.Body = bufferedBody{bufio.NewReaderSize(r.Body, fileBuffer), r.Body}
	}
	return nil
}

type bufferedBody struct {
	*bufio.Reader
	io.Closer
}

// contentType is the media type of the body. One that does not say is taken for JSON.
func contentType(r *http.Request) (string, error) {
	header := r.Header.Get("Content-Type")
	if header == "" {
		return jsonType, nil
	}
	mediaType, _, err := mime.ParseMediaType(header)
	if err != nil {
		return "", fault.Wrap(err, fault.InvalidRequest, "header Content-Type %q cannot be understood", header)
	}
	return mediaType, nil
}

func wrongType(r *http.Request, content openapi3.Content) error {
	var want []string
	for _, t := range []string{jsonType, formType, "application/octet-stream"} {
		if content[t] != nil {
			want = append(want, t)
		}
	}
	return fault.New(fault.InvalidRequest, "header Content-Type is %q and must be %s here", r.Header.Get("Content-Type"), strings.Join(want, " or "))
}

func checkJSON(w http.ResponseWriter, r *http.Request, required bool, schema *openapi3.Schema) error {
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxJSON))
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return fault.New(fault.PayloadTooLarge, "the body is larger than %d MiB; move large data as a file", maxJSON>>20)
	}
	if err != nil {
		return fault.Wrap(err, fault.InvalidRequest, "the body could not be read to its end")
	}
	r.Body = io.NopCloser(bytes.NewReader(raw))
	if len(bytes.TrimSpace(raw)) == 0 {
		if required {
			return fault.New(fault.InvalidRequest, "the body is missing; send a JSON object")
		}
		r.Body = http.NoBody
		return nil
	}
	value, err := decodeJSON(raw)
	if err != nil {
		return err
	}
	if err := schema.VisitJSON(value, openapi3.VisitAsRequest()); err != nil {
		return bodyFault(err)
	}
	return nil
}

// decodeJSON decodes the one JSON value that raw must be.
func decodeJSON(raw []byte) (any, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var value any
	if err := dec.Decode(&value); err != nil {
		return nil, jsonFault(raw, err)
	}
	if rest := bytes.TrimLeft(raw[dec.InputOffset():], " \t\r\n"); len(rest) > 0 {
		line, column := position(raw, int64(len(raw)-len(rest)))
		return nil, fault.New(fault.InvalidRequest, "the body is not valid JSON: something follows its end at line %d, column %d", line, column)
	}
	return value, nil
}

// jsonFault says where raw stops being JSON.
func jsonFault(raw []byte, err error) error {
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &syntax):
		line, column := position(raw, syntax.Offset-1)
		return fault.Wrap(err, fault.InvalidRequest, "the body is not valid JSON: %s at line %d, column %d", syntax, line, column)
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return fault.Wrap(err, fault.InvalidRequest, "the body is not valid JSON: it ends too early")
	}
	return fault.Wrap(err, fault.InvalidRequest, "the body is not valid JSON")
}

// position turns an offset into a line and a column, both from 1.
func position(raw []byte, offset int64) (line, column int) {
	before := raw[:min(max(offset, 0), int64(len(raw)))]
	return 1 + bytes.Count(before, []byte("\n")), len(before) - bytes.LastIndexByte(before, '\n')
}
