// Package hostv1 is the contract between the control floor and the host agent: the
// generated Connect types and, in this file, the plain HTTP paths that carry file
// contents. It knows nothing of either floor.
package hostv1

import "net/url"

// FilesPath is where the host agent serves the contents of files. GET answers 200
// with the bytes of one file and its Content-Length; POST takes a body of any length
// as the new contents of one file and answers 204. Both take the query parameters
// SandboxParam, PathParam and UserParam (empty: the sandbox's default user). An error
// is answered as internal/fault writes it over HTTP.
const FilesPath = "/wrenn.host.v1/files"

// Query parameters of FilesPath.
const (
	SandboxParam = "sandbox"
	PathParam    = "path"
	UserParam    = "user"
)

// FilesURL is the path and query for one file of one sandbox.
func FilesURL(sandboxID, path, user string) string {
	q := url.Values{SandboxParam: {sandboxID}, PathParam: {path}}
	if user != "" {
		q.Set(UserParam, user)
	}
	return FilesPath + "?" + q.Encode()
}
