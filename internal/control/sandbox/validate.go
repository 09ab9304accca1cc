package sandbox

import (
	"regexp"
	"strings"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// Limits on what goes to the guest. The kernel there has them too, but its errors would
// not say which field was wrong.
const (
	maxPath     = 4096      // bytes, Linux PATH_MAX
	maxArgument = 128 << 10 // bytes, Linux MAX_ARG_STRLEN
	maxName     = 128       // bytes of a metadata or environment name
	maxLabels   = 64        // metadata entries
	maxPeriod   = 10 * 365 * 24 * time.Hour
	maxWait     = 10 * time.Minute
)

var tagPattern = regexp.MustCompile(`^[A-Za-z0-9._:-]{1,128}$`)

func (o Options) validate() error {
	if err := checkEnv("env", o.Env); err != nil {
		return err
	}
	if len(o.Metadata) > maxLabels {
		return fault.New(fault.InvalidRequest, "field \"metadata\" may have at most %d entries", maxLabels)
	}
	for k, v := range o.Metadata {
		if strings.ContainsRune(k, 0) || strings.ContainsRune(v, 0) {
			return fault.New(fault.InvalidRequest, "field \"metadata\" must not contain NUL bytes")
		}
		if k == "" || len(k) > maxName {
			return fault.New(fault.InvalidRequest, "a key in field \"metadata\" must have 1 to %d bytes", maxName)
		}
	}
	if err := checkPeriod("timeout_sec", o.Timeout); err != nil {
		return err
	}
	if err := checkPeriod("deadline_sec", o.Deadline); err != nil {
		return err
	}
	if err := checkText("template", o.Template); err != nil {
		return err
	}
	if err := checkWait(o.Wait); err != nil {
		return err
	}
	if err := o.Web.validate(); err != nil {
		return err
	}
	return checkText("user", o.User)
}

func (c Command) validate() error {
	if c.Cmd == "" && (c.Terminal == nil || len(c.Args) > 0) {
		return fault.New(fault.InvalidRequest, "field \"cmd\" is missing; it names the program to run")
	}
	for _, arg := range append([]string{c.Cmd}, c.Args...) {
		if strings.ContainsRune(arg, 0) {
			return fault.New(fault.InvalidRequest, "fields \"cmd\" and \"args\" must not contain a NUL character")
		}
		if len(arg) >= maxArgument {
			return fault.New(fault.InvalidRequest, "an argument may have at most %d bytes; write longer data to a file or to stdin", maxArgument-1)
		}
	}
	if err := checkEnv("envs", c.Env); err != nil {
		return err
	}
	if c.Cwd != "" {
		if err := checkPath("cwd", c.Cwd); err != nil {
			return err
		}
	}
	// A path element of dots means another path, by which the process could not be reached.
	if c.Tag != "" && (!tagPattern.MatchString(c.Tag) || onlyDigits(c.Tag) || strings.Trim(c.Tag, ".") == "") {
		return fault.New(fault.InvalidRequest,
			"field \"tag\" must be 1 to 128 letters, digits and . _ : - and not dots only, nor digits only, which would look like a pid")
	}
	if err := checkPeriod("timeout_sec", c.Timeout); err != nil {
		return err
	}
	return checkText("user", c.User)
}

func checkEnv(field string, env map[string]string) error {
	for k, v := range env {
		switch {
		case k == "" || len(k) > maxName || strings.ContainsAny(k, "=\x00"):
			return fault.New(fault.InvalidRequest, "a name in field %q must have 1 to %d bytes, without = and NUL", field, maxName)
		case strings.ContainsRune(v, 0):
			return fault.New(fault.InvalidRequest, "the value of %q in field %q must not contain a NUL character", k, field)
		case len(k)+len(v)+2 > maxArgument:
			return fault.New(fault.InvalidRequest, "the value of %q in field %q is longer than %d bytes", k, field, maxArgument-len(k)-2)
		}
	}
	return nil
}

func checkPath(field, path string) error {
	switch {
	case path == "":
		return fault.New(fault.InvalidRequest, "field %q must not be empty", field)
	case len(path) > maxPath:
		return fault.New(fault.InvalidRequest, "field %q has %d bytes, and a path may have at most %d", field, len(path), maxPath)
	}
	return checkText(field, path)
}

func checkText(field, v string) error {
	if strings.ContainsRune(v, 0) {
		return fault.New(fault.InvalidRequest, "field %q must not contain a NUL character", field)
	}
	return nil
}

func checkPeriod(field string, d time.Duration) error {
	if d < 0 || d > maxPeriod {
		return fault.New(fault.InvalidRequest, "field %q must be 0 (none) to %d seconds", field, int64(maxPeriod/time.Second))
	}
	return nil
}

func checkWait(d time.Duration) error {
	if d < 0 || d > maxWait {
		return fault.New(fault.InvalidRequest, "field \"wait_sec\" must be 0 to %d seconds", int64(maxWait/time.Second))
	}
	return nil
}

func onlyDigits(s string) bool {
	return strings.Trim(s, "0123456789") == ""
}
