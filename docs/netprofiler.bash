# Completion of bash for netprofiler. Written by scripts/manual.py: change that, or netprofiler/config.py.

_netprofiler() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} verb=run options=""
    local verbs="run record replay decode doctor explain map"
    COMPREPLY=()
    case " $verbs " in *" ${COMP_WORDS[1]} "*) verb=${COMP_WORDS[1]} ;; esac
    case $verb in
        run) options="-o --output --no-output --pid --exclude-pid --comm --exclude-comm --exe --exclude-exe --port --exclude-port --container --exclude-container --compose-project --compose-service --container-label --container-socket --container-namespace --opt-in --opt-in-values --env-output --env-prefix --stream-interval --ledger --body-limit --no-raw-payload --redact --no-redact --mask --rotate-size --rotate-age --rotate-keep --rotate-compression --encrypt-to --audit --user --proto --tls --no-tls --metrics-address --metrics-config --route --max-cpu --duration --count -v --verbose --log-format --config --help" ;;
        record) options="--pid --exclude-pid --comm --exclude-comm --exe --exclude-exe --port --exclude-port --container --exclude-container --compose-project --compose-service --container-label --container-socket --container-namespace --opt-in --opt-in-values --ledger --audit --user --tls --no-tls --duration -v --verbose --log-format --config --help" ;;
        replay) options="-o --output --no-output --pid --exclude-pid --comm --exclude-comm --port --exclude-port --stream-interval --ledger --body-limit --no-raw-payload --redact --no-redact --mask --rotate-size --rotate-age --rotate-keep --rotate-compression --encrypt-to --proto --count -v --verbose --log-format --config --help" ;;
        decode) options="--help" ;;
        doctor) options="--json --help" ;;
        explain) options="--seconds --json --help" ;;
        map) options="--format --help" ;;
    esac
    case $before in
        --audit|--config|--container-socket|--env-output|--exclude-exe|--exe|--ledger|--metrics-config|--output|--proto|-o)
            mapfile -t COMPREPLY < <(compgen -f -- "$word")
            return ;;
        --body-limit|--comm|--compose-project|--compose-service|--container|--container-label|--container-namespace|--count|--duration|--encrypt-to|--env-prefix|--exclude-comm|--exclude-container|--exclude-pid|--exclude-port|--format|--log-format|--mask|--max-cpu|--metrics-address|--opt-in|--opt-in-values|--pid|--port|--redact|--rotate-age|--rotate-compression|--rotate-keep|--rotate-size|--route|--seconds|--stream-interval|--user)
            return ;;
    esac
    if [[ $word == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$options" -- "$word")
    elif (( COMP_CWORD == 1 )); then
        mapfile -t COMPREPLY < <(compgen -W "$verbs" -- "$word")
    else
        mapfile -t COMPREPLY < <(compgen -f -- "$word")
    fi
}
complete -o filenames -F _netprofiler netprofiler
