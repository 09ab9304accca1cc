package report

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
)

// Part is one of the things that a benchmark measures.
type Part struct {
	Name    string
	Measure func(context.Context) error
}

// Measure measures the parts whose names only matches, and goes on past one that fails:
// what the others say counts all the same. It stops when ctx ends.
func Measure(ctx context.Context, only *regexp.Regexp, parts ...Part) error {
	var errs []error
	for _, part := range parts {
		if ctx.Err() != nil {
			break
		}
		if !only.MatchString(part.Name) {
			continue
		}
		fmt.Fprintln(os.Stderr, "measuring", part.Name)
		if err := part.Measure(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", part.Name, err))
		}
	}
	return errors.Join(errs...)
}
