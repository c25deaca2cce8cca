"""The fields of a RayJob that we use, and their types, for jsonschema.

Written from KubeRay's own description: docs.ray.io/en/master/kuberay/references/api.html (v1.7.1), the types in
ray-operator/apis/ray/v1/{rayjob,raycluster}_types.go and helm-chart/kuberay-operator/crds/ray.io_rayjobs.yaml of
github.com/ray-project/kuberay; pods as in Kubernetes' PodSpec v1. As in the CRD, a field that is not listed is refused
(the API server drops it, or refuses it where validation is strict), so a new field has to be looked up there first.
"""

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
QUANTITY: Schema = {  # Kubernetes' resource.Quantity, as the CRD has it: x-kubernetes-int-or-string
    "anyOf": [
        {"type": "integer"},
        {
            "type": "string",
            "pattern": r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?[0-9]+))?$",
        },
    ]
}
LABEL: Schema = {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}  # RFC 1123
MOUNT_NAME = LABEL


def struct(required: tuple[str, ...] = (), **fields: Schema) -> Schema:
    return {"type": "object", "additionalProperties": False, "required": list(required), "properties": fields}


def array(items: Schema) -> Schema:
    return {"type": "array", "items": items, "minItems": 1}


def mapping(values: Schema) -> Schema:
    return {"type": "object", "additionalProperties": values}


SECRET_KEY = struct(("key",), name=LABEL, key=TEXT, optional=FLAG)
ENV = struct(("name",), name=TEXT, value=TEXT, valueFrom=struct(secretKeyRef=SECRET_KEY))
CONTAINER = struct(
    ("name",),  # and Kubernetes wants an image where nothing fills it in
    name=LABEL,
    image={"type": "string", "minLength": 1},
    env=array(ENV),
    envFrom=array(struct(prefix=TEXT, secretRef=struct(name=LABEL, optional=FLAG))),
    resources=struct(requests=mapping(QUANTITY), limits=mapping(QUANTITY)),
    volumeMounts=array(
        struct(
            ("name", "mountPath"), name=MOUNT_NAME, mountPath={"type": "string", "pattern": "^[^:]+$"}, readOnly=FLAG
        )
    ),
)
VOLUME = struct(
    ("name",),
    name=MOUNT_NAME,
    persistentVolumeClaim=struct(("claimName",), claimName=LABEL, readOnly=FLAG),
    configMap=struct(name=LABEL, optional=FLAG),
)
POD = struct(
    ("containers",),
    securityContext=struct(
        runAsNonRoot=FLAG, runAsUser={"type": "integer"}, runAsGroup={"type": "integer"}, fsGroup={"type": "integer"}
    ),
    containers=array(CONTAINER),
    volumes=array(VOLUME),
    tolerations=array(
        struct(
            key=TEXT,
            operator={"enum": ["Exists", "Equal"]},
            value=TEXT,
            effect={"enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]},
        )
    ),
    nodeSelector=mapping(TEXT),
)
TEMPLATE = struct(metadata=struct(labels=mapping(TEXT), annotations=mapping(TEXT)), spec=POD)
START = mapping(TEXT)  # words of `ray start`, all as text

CLUSTER = struct(
    ("headGroupSpec",),
    rayVersion=TEXT,
    enableInTreeAutoscaling=FLAG,
    authOptions=struct(mode={"enum": ["disabled", "token"]}, secretName=TEXT),
    headGroupSpec=struct(
        ("template", "rayStartParams"),
        serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
        rayStartParams=START,
        template=TEMPLATE,
    ),
    workerGroupSpecs=array(
        struct(
            ("groupName", "minReplicas", "maxReplicas", "template", "rayStartParams"),
            groupName=LABEL,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            numOfHosts=COUNT,
            rayStartParams=START,
            template=TEMPLATE,
        )
    ),
)
NAMED = struct(("name",), name={**LABEL, "pattern": r"^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 47}, namespace=LABEL)
RAYJOB = struct(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=NAMED,  # 47: MaxRayJobNameLength of the operator's utils/constant.go
    spec=struct(
        ("rayClusterSpec",),
        entrypoint=TEXT,
        runtimeEnvYAML=TEXT,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        backoffLimit=COUNT,
        activeDeadlineSeconds=COUNT,
        shutdownAfterJobFinishes=FLAG,
        ttlSecondsAfterFinished=COUNT,
        suspend=FLAG,
        rayClusterSpec=CLUSTER,
    ),
)
CONFIG_MAP = struct(
    ("apiVersion", "kind", "metadata", "data"),
    apiVersion={"const": "v1"},
    kind={"const": "ConfigMap"},
    metadata=NAMED,
    data=mapping(TEXT),
)
