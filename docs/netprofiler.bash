# Completion of bash for netprofiler. Written by scripts/manual.py: change that, or netprofiler/config.py.

_netprofiler() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} verb=run options=""
    local verbs="run record replay decode doctor explain"
    COMPREPLY=()
    case " $verbs " in *" ${COMP_WORDS[1]} "*) verb=${COMP_WORDS[1]} ;; esac
    case $verb in
        run) options="-o --output --no-output --pid --exclude-pid --comm --exclude-comm --exe --exclude-exe --port --exclude-port --stream-interval --ledger --body-limit --no-raw-payload --redact --no-redact --proto --tls --no-tls --duration --count -v --verbose --log-format --config --help" ;;
        record) options="--pid --exclude-pid --comm --exclude-comm --exe --exclude-exe --port --exclude-port --ledger --tls --no-tls --duration -v --verbose --log-format --config --help" ;;
        replay) options="-o --output --no-output --pid --exclude-pid --comm --exclude-comm --port --exclude-port --stream-interval --ledger --body-limit --no-raw-payload --redact --no-redact --proto --count -v --verbose --log-format --config --help" ;;
        decode) options="--help" ;;
        doctor) options="--json --help" ;;
        explain) options="--seconds --json --help" ;;
    esac
    case $before in
        --config|--exclude-exe|--exe|--ledger|--output|--proto|-o)
            mapfile -t COMPREPLY < <(compgen -f -- "$word")
            return ;;
        --body-limit|--comm|--count|--duration|--exclude-comm|--exclude-pid|--exclude-port|--log-format|--pid|--port|--redact|--seconds|--stream-interval)
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
