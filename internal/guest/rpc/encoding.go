package rpc

import (
	"bufio"
	"compress/gzip"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/guest/filesystem"
)

// accepted is how a client will have an answer.
type accepted uint8

const (
	plain   accepted = iota // as it is
	zipped                  // with gzip if that makes it smaller
	zipOnly                 // with gzip
)

// negotiate reads Accept-Encoding (RFC 9110, 12.5.3). Ranges and conditions are about the
// file as it is, so a request for these gets it so unless it refuses to.
func negotiate(header http.Header) (accepted, error) {
	weights := parseWeights(header.Values("Accept-Encoding"))
	gzip, listsGzip := weights["gzip"]
	identity, listsIdentity := weights["identity"]
	others, listsOthers := weights["*"]
	if !listsIdentity {
		identity, listsIdentity = others, listsOthers
	}
	refused := listsIdentity && identity.q == 0
	mayZip := listsGzip && gzip.q > 0 || !listsGzip && listsOthers && others.q > 0
	prefers := listsGzip && gzip.q > 0 &&
		(!listsIdentity || gzip.q > identity.q || gzip.q == identity.q && gzip.place < identity.place)
	switch {
	case refused && !mayZip:
		return plain, fault.New(fault.NotAcceptable, "the file can be sent as it is or with gzip, and the Accept-Encoding header refuses both")
	case refused:
		return zipOnly, nil
	case prefers && !isPartial(header):
		return zipped, nil
	}
	return plain, nil
}

// isPartial says whether a request has a range or conditions.
func isPartial(header http.Header) bool {
	for _, name := range []string{"Range", "If-Range", "If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since"} {
		if header.Get(name) != "" {
			return true
		}
	}
	return false
}

// weight is how much a coding is wanted, from 0 (not at all) to 1, and its place in the list.
type weight struct {
	q     float64
	place int
}

// parseWeights reads the codings of Accept-Encoding. What makes no sense is passed over, and
// of a coding that is there twice the first counts.
func parseWeights(values []string) map[string]weight {
	weights := make(map[string]weight)
	for place, item := range strings.Split(strings.Join(values, ","), ",") {
		coding, params, _ := strings.Cut(item, ";")
		coding = strings.ToLower(strings.TrimSpace(coding))
		if coding == "x-gzip" { // the same, by RFC 9110
			coding = "gzip"
		}
		q, ok := quality(params)
		if _, twice := weights[coding]; coding == "" || !ok || twice {
			continue
		}
		weights[coding] = weight{q, place}
	}
	return weights
}

func quality(params string) (float64, bool) {
	params = strings.TrimSpace(params)
	if params == "" {
		return 1, true
	}
	name, value, _ := strings.Cut(params, "=")
	q, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
	if err != nil || !strings.EqualFold(strings.TrimSpace(name), "q") || !(q >= 0 && q <= 1) { // not NaN either
		return 0, false
	}
	return q, true
}

// packedTypes begin the content types of what is compressed already: packing it once more
// takes the sandbox's time and saves nothing.
var packedTypes = []string{
	"image/gif", "image/jpeg", "image/png", "image/webp", "audio/", "video/", "font/woff",
	"application/zip", "application/gzip", "application/x-gzip", "application/x-rar-compressed", "application/wasm",
}

// zip says whether to send something of this type with gzip.
func (a accepted) zip(contentType string) bool {
	if a == zipped {
		for _, kind := range packedTypes {
			if strings.HasPrefix(contentType, kind) {
				return false
			}
		}
	}
	return a != plain
}

// zipWriters are used again, since each holds a megabyte. The fastest level is the one
// that the time of a sandbox is worth.
var zipWriters = sync.Pool{New: func() any {
	w, err := gzip.NewWriterLevel(io.Discard, gzip.BestSpeed)
	if err != nil {
		panic(err) // there is such a level
	}
	return w
}}

// zipPiece is how much of what gzip makes is sent at once, in bytes.
const zipPiece = 64 << 10

func sendZipped(w http.ResponseWriter, r *http.Request, src io.Reader) {
	w.Header().Set("Content-Encoding", "gzip")
	if r.Method == http.MethodHead {
		return
	}
	zip := zipWriters.Get().(*gzip.Writer)
	defer func() {
		zip.Reset(io.Discard) // it must not keep the connection
		zipWriters.Put(zip)
	}()
	out := bufio.NewWriterSize(w, zipPiece)
	zip.Reset(out)
	_, err := filesystem.Copy(zip, src)
	if err == nil {
		err = zip.Close()
	}
	if err == nil {
		err = out.Flush()
	}
	if err != nil {
		// It can only be shown by the client's not getting the end.
		panic(http.ErrAbortHandler)
	}
}

// decoded returns the content of a body that may have come with gzip.
func decoded(body *impatientReader, header http.Header) (io.Reader, error) {
	encoding := strings.Join(header.Values("Content-Encoding"), ", ")
	switch strings.ToLower(strings.TrimSpace(encoding)) {
	case "", "identity":
		return body, nil
	case "gzip":
		zip, err := gzip.NewReader(bufio.NewReaderSize(body, filesystem.CopyBuffer))
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF // nothing is no gzip
		}
		return &unzipper{zip, body}, unzipError(err, body)
	}
	return nil, fault.New(fault.InvalidRequest, "unsupported content encoding '%s'; send the file as it is or with gzip", encoding)
}

// unzipper reads what is in a body that came with gzip.
type unzipper struct {
	zip  *gzip.Reader
	body *impatientReader
}

func (u *unzipper) Read(p []byte) (int, error) {
	n, err := u.zip.Read(p)
	return n, unzipError(err, u.body)
}

// unzipError tells gzip that is wrong from a body that broke off. When bytes were changed
// on the way, gzip often reads them as if more had to come.
func unzipError(err error, body *impatientReader) error {
	if errors.Is(err, io.ErrUnexpectedEOF) && body.ended {
		return corruptGzip(err)
	}
	return err
}

func corruptGzip(err error) error {
	return fault.Wrap(err, fault.InvalidRequest,
		"the body is not what gzip makes, as its Content-Encoding says: it is corrupt, or its end is missing; nothing was written")
}
