package spec

import (
	"encoding/json"
	"reflect"
	"time"

	_ "embed"

	"github.com/invopop/jsonschema"

	"github.com/atollhq/atoll/topo"
)

//go:embed sample.yaml
var sample []byte

// Sample is a commented atoll.yaml to start from.
func Sample() []byte { return sample }

// Schema is the JSON schema of atoll.yaml (draft 2020-12), made from the structs that decode it; editors use it.
func Schema() []byte {
	r := &jsonschema.Reflector{
		ExpandedStruct:            true,
		DoNotReference:            false,
		AllowAdditionalProperties: false,
		Mapper: func(t reflect.Type) *jsonschema.Schema {
			switch t {
			case reflect.TypeFor[time.Duration]():
				return &jsonschema.Schema{Type: "string", Pattern: `^([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+$`,
					Description: "a duration such as 500ms or 10s"}
			case reflect.TypeFor[topo.TableKind]():
				return oneOf(topo.Keyed, topo.Home, topo.Shared, topo.Local)
			case reflect.TypeFor[topo.WithoutKey]():
				return oneOf(topo.RefuseKeyless, topo.HomeKeyless, topo.NearestKeyless)
			case reflect.TypeFor[topo.Reads]():
				return oneOf(topo.OwnerReads, topo.NearestReads)
			case reflect.TypeFor[topo.WhenStale]():
				return oneOf(topo.StaleToOwner, topo.StaleRefused, topo.StaleServed)
			case reflect.TypeFor[topo.Sessions]():
				return oneOf(topo.HeaderSessions, topo.CookieSessions)
			case reflect.TypeFor[topo.Priority]():
				return oneOf(topo.LowPriority, topo.NormalPriority, topo.HighPriority)
			case reflect.TypeFor[topo.RatePer]():
				return oneOf(topo.PerRoute, topo.PerKey, topo.PerClient)
			case reflect.TypeFor[topo.CertificateField]():
				return oneOf(topo.CommonName, topo.DNSName, topo.URIName)
			case reflect.TypeFor[topo.KeyForm]():
				return oneOf(topo.TextKey, topo.IntegerKey, topo.UUIDKey)
			}
			return nil
		},
	}
	s := r.Reflect(&Spec{})
	s.ID = "https://atoll.example/atoll.schema.json"
	s.Title = "atoll.yaml"
	out, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		panic("BUG: the schema does not marshal: " + err.Error())
	}
	return append(out, '\n')
}

func oneOf[T ~string](values ...T) *jsonschema.Schema {
	s := &jsonschema.Schema{Type: "string"}
	for _, v := range values {
		s.Enum = append(s.Enum, string(v))
	}
	return s
}
