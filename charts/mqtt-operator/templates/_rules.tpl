{{/* What the operator may do where it watches. */}}
{{- define "rules" -}}
- apiGroups: [mqtt.dms.dev]
  resources: [mqttinstances, parenttopics, mqttusers, topicgrants]
  verbs: [list, watch]
# Before anything is deleted in Kafka.
- apiGroups: [mqtt.dms.dev]
  resources: [mqttinstances, parenttopics]
  verbs: [get]
- apiGroups: [mqtt.dms.dev]
  resources: [mqttinstances/status, parenttopics/status, mqttusers/status, topicgrants/status]
  verbs: [patch]
# Takes away the finalizer of an earlier version.
- apiGroups: [mqtt.dms.dev]
  resources: [parenttopics]
  verbs: [patch]
- apiGroups: [apps]
  resources: [statefulsets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services, configmaps]
  verbs: [get, list, watch, create, patch, delete]
# Of those that nobody names, only metadata is read, and only where there are objects of ours. Kubernetes knows no right
# for that alone: where this is too much, give watchNamespaces.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [monitoring.coreos.com]
  resources: [servicemonitors]
  verbs: [get, create, patch, delete]
# An annotation makes the kubelet mount a changed document at once.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, patch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end -}}

{{- define "subjects" -}}
- kind: ServiceAccount
  name: {{ include "serviceAccountName" . }}
  namespace: {{ .Release.Namespace }}
{{- end -}}
