package httpapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/wrenn-sandbox/wrenn/api"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// bodyFault says in plain words how a body breaks its schema.
func bodyFault(err error) error {
	var broken *openapi3.SchemaError
	if !errors.As(err, &broken) {
		return fault.Wrap(err, fault.InvalidRequest, "the body does not fit its description; see /docs")
	}
	path := fieldPath(broken.JSONPointer())
	switch broken.SchemaField {
	case "properties":
		if name := unknownField(broken); name != "" {
			return fault.Wrap(err, fault.InvalidRequest, "there is no field %q; see /docs for those that there are", joinField(path, name))
		}
	case "required":
		// The pointer already ends in what is missing.
		return fault.Wrap(err, fault.InvalidRequest, "field %q is missing", path)
	}
	subject := "the body"
	if path != "" {
		subject = fmt.Sprintf("field %q", path)
	}
	return fault.Wrap(err, fault.InvalidRequest, "%s %s", subject, rule(broken))
}

// parameterFault is bodyFault for a parameter of the path or the query.
func parameterFault(p *openapi3.Parameter, err error) error {
	var broken *openapi3.SchemaError
	if errors.As(err, &broken) {
		return fault.Wrap(err, fault.InvalidRequest, "parameter %q %s", p.Name, rule(broken))
	}
	return fault.Wrap(err, fault.InvalidRequest, "parameter %q %s", p.Name, wantedType(p.Schema.Value))
}

// rule is the rule that was broken, as the end of a sentence.
func rule(e *openapi3.SchemaError) string {
	s := e.Schema
	switch e.SchemaField {
	case "minimum":
		return "must be at least " + number(*s.Min)
	case "maximum":
		return "must be at most " + number(*s.Max)
	case "minLength":
		if s.MinLength == 1 {
			return "must not be empty"
		}
		return fmt.Sprintf("must have at least %d characters", s.MinLength)
	case "maxLength":
		return fmt.Sprintf("must have at most %d characters", *s.MaxLength)
	case "minItems":
		return fmt.Sprintf("must have at least %d entries", s.MinItems)
	case "maxItems":
		return fmt.Sprintf("must have at most %d entries", *s.MaxItems)
	case "minProperties":
		return fmt.Sprintf("must have at least %d of its fields", s.MinProps)
	case "maxProperties":
		return fmt.Sprintf("must have at most %d entries", *s.MaxProps)
	case "enum":
		names := make([]string, len(s.Enum))
		for i, v := range s.Enum {
			names[i] = fmt.Sprint(v)
		}
		return "must be one of " + strings.Join(names, ", ")
	case "pattern":
		return "must match " + s.Pattern
	case "type", "nullable", "format":
		return wantedType(s)
	}
	return "is not valid: " + e.Reason
}

var typeNames = map[string]string{
	"integer": "a whole number", "number": "a number", "string": "a string",
	"boolean": "true or false", "array": "an array", "object": "an object",
}

func wantedType(s *openapi3.Schema) string {
	if s.Type != nil && len(*s.Type) > 0 {
		if name, ok := typeNames[(*s.Type)[0]]; ok {
			return "must be " + name
		}
	}
	return "has the wrong type"
}

// unknownField is the name of the field that a schema without additional properties does
// not have, or empty when that is not what is wrong.
func unknownField(e *openapi3.SchemaError) string {
	value, ok := e.Value.(map[string]any)
	if !ok {
		return ""
	}
	for name := range value {
		if _, ok := e.Schema.Properties[name]; !ok {
			return name
		}
	}
	return ""
}

// fieldPath writes where a value is as people do: envs.PATH, args[2].
func fieldPath(pointer []string) string {
	path := ""
	for _, part := range pointer {
		path = joinField(path, part)
	}
	return path
}

func joinField(path, part string) string {
	if _, err := strconv.Atoi(part); err == nil && path != "" {
		return path + "[" + part + "]"
	}
	if path == "" {
		return part
	}
	return path + "." + part
}

// number writes a limit without an exponent.
func number(f float64) string { return strconv.FormatFloat(f, 'f', -1, 64) }

// parameter answers a parameter that the generated server could not parse.
func (f failer) parameter(w http.ResponseWriter, r *http.Request, err error) {
	var format *api.InvalidParamFormatError
	var required *api.RequiredParamError
	var many *api.TooManyValuesForParamError
	switch {
	case errors.As(err, &format):
		err = fault.Wrap(err, fault.InvalidRequest, "parameter %q has the wrong form; see /docs for what it may be", format.ParamName)
	case errors.As(err, &required):
		err = fault.Wrap(err, fault.InvalidRequest, "parameter %q is missing", required.ParamName)
	case errors.As(err, &many):
		err = fault.Wrap(err, fault.InvalidRequest, "parameter %q is given more than once", many.ParamName)
	default:
		err = fault.Wrap(err, fault.InvalidRequest, "a parameter of the request has the wrong form; see /docs")
	}
	f.write(w, r, err)
}

// decoding answers a body that is valid and that the generated server could still not
// decode, such as the whole number 1.0 or one too large for its type.
func (f failer) decoding(w http.ResponseWriter, r *http.Request, err error) {
	var wrong *json.UnmarshalTypeError
	if errors.As(err, &wrong) {
		err = fault.Wrap(err, fault.InvalidRequest, "field %q cannot be %s", wrong.Field, wrong.Value)
	} else {
		err = fault.Wrap(err, fault.InvalidRequest, "the body cannot be understood; see /docs for its form")
	}
	f.write(w, r, err)
}
