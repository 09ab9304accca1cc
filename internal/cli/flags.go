package cli

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// sizeFlag is a flag's size in MiB: "512", "512M", "2G".
type sizeFlag int

func (f *sizeFlag) String() string {
	if *f == 0 {
		return ""
	}
	return strconv.Itoa(int(*f)) + "M"
}

// Type is the placeholder of the help text.
func (f *sizeFlag) Type() string { return "SIZE" }

func (f *sizeFlag) Set(text string) error {
	units := []struct {
		suffix string
		mib    int
	}{{"GiB", 1 << 10}, {"GB", 1 << 10}, {"G", 1 << 10}, {"MiB", 1}, {"MB", 1}, {"M", 1}, {"", 1}}
	for _, unit := range units {
		digits, ok := strings.CutSuffix(strings.ToLower(text), strings.ToLower(unit.suffix))
		if !ok {
			continue
		}
		const most = 1 << 24 // MiB, the API's own limit
		n, err := strconv.Atoi(strings.TrimSpace(digits))
		if err != nil || n < 1 || n > most/unit.mib {
			break
		}
		*f = sizeFlag(n * unit.mib)
		return nil
	}
	return fmt.Errorf("want a size such as 512M or 2G")
}

// pairsFlag is a repeated flag of KEY=VALUE.
type pairsFlag map[string]string

func (f *pairsFlag) String() string { return "" }

// Type is the placeholder of the help text.
func (f *pairsFlag) Type() string { return "KEY=VALUE" }

func (f *pairsFlag) Set(text string) error {
	key, value, ok := strings.Cut(text, "=")
	if !ok || key == "" {
		return fmt.Errorf("want KEY=VALUE")
	}
	if *f == nil {
		*f = pairsFlag{}
	}
	(*f)[key] = value
	return nil
}

// secondsFlag is a flag's duration in whole seconds: "90", "90s", "15m", "2h".
type secondsFlag int64

func (f *secondsFlag) String() string {
	if *f == 0 {
		return ""
	}
	return (time.Duration(*f) * time.Second).String()
}

// Type is the placeholder of the help text.
func (f *secondsFlag) Type() string { return "DURATION" }

func (f *secondsFlag) Set(text string) error {
	if n, err := strconv.ParseInt(text, 10, 32); err == nil && n >= 0 {
		*f = secondsFlag(n)
		return nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 || d%time.Second != 0 {
		return fmt.Errorf("want whole seconds, such as 90s, 15m or 2h")
	}
	*f = secondsFlag(d / time.Second)
	return nil
}

// flagError says of a flag's value that is no number what is wanted, and not which function
// of ours could not read it.
func flagError(err error) error {
	var invalid *pflag.InvalidValueError
	var number *strconv.NumError
	if !errors.As(err, &invalid) || !errors.As(err, &number) {
		return err
	}
	wants := "a whole number, such as 3"
	switch kind := invalid.GetFlag().Value.Type(); {
	case errors.Is(number, strconv.ErrRange):
		wants = "a smaller number"
	case kind == "bool":
		wants = "true or false"
	case strings.HasPrefix(kind, "float"):
		wants = "a number, such as 2.5"
	}
	return fmt.Errorf("--%s wants %s, not %q", invalid.GetFlag().Name, wants, invalid.GetValue())
}

// commandFollows is for a command whose last arguments are the command line of another
// program: everything from the first word that is no flag of ours belongs to that.
func commandFollows(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().SetInterspersed(false)
	return cmd
}

// flagsAfter parses the flags that stand between a first argument and the command line
// of another program, as in `exec ID --user root -- id`, and returns that command line.
func flagsAfter(cmd *cobra.Command, args []string) ([]string, error) {
	if err := cmd.Flags().Parse(args); err != nil {
		return nil, usageErrorf(cmd, "%s", flagError(err))
	}
	return cmd.Flags().Args(), nil
}
