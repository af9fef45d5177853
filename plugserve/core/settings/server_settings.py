"""Settings of the HTTP server, and the one that names a config file."""

from __future__ import annotations

from plugserve.core.settings.setting_groups import FILE, SERVER
from plugserve.core.settings.setting_types import (
    COUNT_ACCEPTS,
    SIZE_ACCEPTS,
    Address,
    Count,
    CountFromZero,
    DeclaredSettings,
    DetailedTraces,
    FlightRecords,
    JsonTexts,
    LogFormat,
    LogLevel,
    Number,
    Objectives,
    OptionalCount,
    OptionalCountFromZero,
    OptionalPositive,
    Port,
    Positive,
    RootPath,
    Secrets,
    Size,
    SocketMode,
    setting,
)


class ServerSettings(DeclaredSettings):
    """Listening, access, limits, logs."""

    host: Address = setting("0.0.0.0", SERVER, "Address to listen on.", "an address", metavar="ADDRESS")
    port: Port = setting(
        8000, SERVER, "Port to listen on; 0 takes any free one.", "a port from 0 to 65535", metavar="PORT"
    )
    uds: str | None = setting(
        None, SERVER, "Unix socket to listen on instead of --host and --port.", "a path", metavar="PATH"
    )
    uds_mode: SocketMode = setting(
        "660",
        SERVER,
        "Who may connect to the socket of --uds: its file's mode, in octal.",
        "an octal mode that lets the owner read and write, such as 660 (in quotes in a YAML file)",
        metavar="MODE",
    )
    root_path: RootPath = setting(
        "",
        SERVER,
        "Path below which a proxy serves this server; requests are served with and without it.",
        "a path such as /llm, not one of the API itself",
        metavar="PATH",
        shown_default="none",
    )
    ui: bool = setting(
        True,
        SERVER,
        "Serve the page at /: a playground and a live view. Without it, / sends browsers to /docs.",
        "true or false",
    )
    ssl_keyfile: str | None = setting(None, SERVER, "Private key for HTTPS (PEM).", "a file", metavar="FILE")
    ssl_certfile: str | None = setting(None, SERVER, "Certificate for HTTPS (PEM).", "a file", metavar="FILE")
    api_workers: Count = setting(1, SERVER, "Processes that serve HTTP.", COUNT_ACCEPTS, metavar="N")
    shutdown_timeout: Number = setting(
        30.0, SERVER, "Seconds that running requests get at SIGTERM.", "a number of at least 0", metavar="S"
    )
    engine_hang_timeout: Number = setting(
        60.0,
        SERVER,
        "Seconds without a heartbeat after which an engine or worker is replaced; 0 never replaces one.",
        "a number of at least 0",
        metavar="S",
    )
    engine_start_timeout: Number = setting(
        1800.0,
        SERVER,
        "Seconds that an engine may load, compile kernels and capture graphs; 0 is no limit.",
        "a number of at least 0",
        metavar="S",
    )
    disable_log_requests: bool = setting(False, SERVER, "Don't log a line for each request.", "true or false")
    log_prompts: bool = setting(
        False,
        SERVER,
        "Log prompts as the model gets them: logs then hold what users write.",
        "true or false",
    )
    max_log_len: OptionalCountFromZero = setting(
        None,
        SERVER,
        "Characters of a prompt that --log-prompts logs, or tokens of one that came as token ids.",
        "a whole number of at least 0",
        metavar="N",
        shown_default="no limit",
    )
    otlp_traces_endpoint: str | None = setting(
        None,
        SERVER,
        "OpenTelemetry collector that gets the spans of requests; OTEL_EXPORTER_OTLP_ENDPOINT does the same.",
        "an URL",
        metavar="URL",
    )
    collect_detailed_traces: DetailedTraces = setting(
        [],
        SERVER,
        "Give spans to steps of a request under 1 ms as well (worker or all; model adds nothing).",
        "model, worker or all, or several with commas",
        metavar="PART",
        shown_default="none",
    )
    trace_baggage: JsonTexts = setting(
        [],
        SERVER,
        "Key of a request's W3C baggage that becomes an attribute of its spans, * for any; repeat it.",
        "a key or *",
        metavar="KEY",
    )
    record_trace: str | None = setting(
        None,
        SERVER,
        "Append sizes and times of requests and steps to a file, for plugserve simulate; no prompts, no keys.",
        "a file",
        metavar="FILE",
    )
    flight_recorder: FlightRecords = setting(
        4096,
        SERVER,
        "Requests whose sizes and times each engine keeps, and four times as many steps, for /live, plugserve top and "
        "plugserve replay; 0 keeps none.",
        "a whole number from 0 to 100000",
        metavar="N",
    )
    flight_recorder_dir: str | None = setting(
        None,
        SERVER,
        "Folder that gets what an engine had recorded when it died; the last ten are kept.",
        "a folder",
        metavar="FOLDER",
        shown_default="~/.local/state/plugserve",
    )
    flight_recorder_prompts: bool = setting(
        False,
        SERVER,
        "Record the token ids of prompts, too: the file then holds what users write.",
        "true or false",
    )
    max_logprobs: CountFromZero = setting(
        20, SERVER, "Most logprobs that a request may ask for.", "a whole number of at least 0", metavar="N"
    )
    return_tokens_as_token_ids: bool = setting(
        False,
        SERVER,
        "Write the tokens of logprobs as token_id:N, so that all differ; a request's own field wins.",
        "true or false",
    )
    enable_force_include_usage: bool = setting(
        False, SERVER, "End every stream with its usage, as if stream_options.include_usage were set.", "true or false"
    )
    enable_prompt_tokens_details: bool | None = setting(
        None,
        SERVER,
        "Show usage.prompt_tokens_details.cached_tokens in every answer, also when it is 0; "
        "--no-enable-prompt-tokens-details shows it in none.",
        "true or false",
        shown_default="where it isn't 0",
    )
    log_level: LogLevel = setting(
        "info",
        SERVER,
        "Least severe lines that are logged.",
        "one of critical, error, warning, info, debug",
        metavar="LEVEL",
    )
    log_format: LogFormat = setting(
        "text",
        SERVER,
        "How lines are logged: text with key=value pairs, or JSON objects.",
        "text or json",
        metavar="FORM",
    )
    log_file: str | None = setting(
        None, SERVER, "File to which all processes log as well as to standard error.", "a file", metavar="FILE"
    )
    log_file_size: Size = setting(
        50 * 2**20,
        SERVER,
        "Size at which the log file is renamed to FILE.1.",
        SIZE_ACCEPTS,
        metavar="SIZE",
        shown_default="50MiB",
    )
    log_file_count: CountFromZero = setting(
        5, SERVER, "Old log files that are kept; 0 never renames.", "a whole number of at least 0", metavar="N"
    )
    disable_log_stats: bool = setting(
        False, SERVER, "Don't log an engine's throughput every 10 seconds while it is busy.", "true or false"
    )

    api_key: Secrets = setting(
        [],
        SERVER,
        "Key that requests must carry; repeat it for several. Better as PLUGSERVE_API_KEY than as a flag.",
        "a text that is not empty",
        metavar="KEY",
        is_secret=True,
    )
    api_key_file: str | None = setting(
        None,
        SERVER,
        "File with more keys, one a line; it is read again at SIGHUP.",
        "a file",
        metavar="FILE",
    )
    goodput: Objectives = setting(
        [],
        SERVER,
        "Milliseconds within which requests should stay, which /metrics counts: ttft (to the first token), tpot (per "
        "token after it), e2el (in all).",
        "pairs such as ttft:200 e2el:5000, of ttft, tpot and e2el",
        metavar="NAME:MS",
        shown_default="none",
        takes_many=True,
    )
    metrics_no_auth: bool = setting(False, SERVER, "Serve /metrics without a key.", "true or false")
    allowed_origins: JsonTexts = setting(
        [],
        SERVER,
        "Web origin whose pages may call this server (CORS), * for any; repeat it.",
        "an origin such as https://example.com",
        metavar="ORIGIN",
    )
    allowed_methods: JsonTexts = setting(
        ["*"],
        SERVER,
        "Method that such pages may use; repeat it.",
        "an HTTP method or *",
        metavar="METHOD",
        shown_default="any",
    )
    allowed_headers: JsonTexts = setting(
        ["*"],
        SERVER,
        "Header that such pages may send; repeat it.",
        "a header's name or *",
        metavar="HEADER",
        shown_default="any",
    )
    allow_credentials: bool = setting(
        False, SERVER, "Let such pages send cookies and other credentials.", "true or false"
    )
    max_num_queued_requests: OptionalCountFromZero = setting(
        None,
        SERVER,
        "Sequences that may wait in one engine; further requests are answered with 503.",
        "a whole number of at least 0",
        metavar="N",
        shown_default="no limit",
    )
    request_timeout: OptionalPositive = setting(
        None,
        SERVER,
        "Seconds that a request may wait and run; then it ends with 504.",
        "a number above 0",
        metavar="S",
        shown_default="no limit",
    )
    max_body_size: Size = setting(
        16 * 2**20, SERVER, "Largest request body.", SIZE_ACCEPTS, metavar="SIZE", shown_default="16MiB"
    )
    max_body_values: Count = setting(
        200_000,
        SERVER,
        "Most values of a JSON body, token ids included, and ten times the most keys.",
        COUNT_ACCEPTS,
        metavar="N",
    )
    max_body_bytes_in_flight: Size = setting(
        512 * 2**20,
        SERVER,
        "Request bodies that a server process holds at a time.",
        SIZE_ACCEPTS,
        metavar="SIZE",
        shown_default="512MiB",
    )
    max_connections: Count = setting(
        4096, SERVER, "Connections that a server process has at a time; others get 503.", COUNT_ACCEPTS, metavar="N"
    )
    header_timeout: Positive = setting(
        30.0, SERVER, "Seconds that a client has to send a request's headers.", "a number above 0", metavar="S"
    )
    body_timeout: Positive = setting(
        300.0, SERVER, "Seconds that a client has to send a request's body.", "a number above 0", metavar="S"
    )
    files_dir: str | None = setting(
        None,
        SERVER,
        "Folder for clients' files and batches, which then outlive the server; of one server alone.",
        "a folder",
        metavar="FOLDER",
        shown_default="a temporary folder",
    )
    max_files: Count = setting(
        1000, SERVER, "Files, and batches, that are kept of each API key or tenant.", COUNT_ACCEPTS, metavar="N"
    )
    max_files_size: Size = setting(
        2**30,
        SERVER,
        "Bytes of files that are kept of each API key or tenant.",
        SIZE_ACCEPTS,
        metavar="SIZE",
        shown_default="1GiB",
    )
    max_batch_requests: OptionalCount = setting(
        None,
        SERVER,
        "Requests of batches that run at a time.",
        COUNT_ACCEPTS,
        metavar="N",
        shown_default="half of --max-num-seqs",
    )
    max_prompt_tokens: OptionalCount = setting(
        None,
        SERVER,
        "Longest prompt that a request may have.",
        COUNT_ACCEPTS,
        metavar="N",
        shown_default="what the context holds",
    )
    require_model: bool = setting(
        False, SERVER, "Refuse requests that name no model, instead of serving the first one.", "true or false"
    )
    share_prefix_cache: bool = setting(
        False,
        SERVER,
        "Let requests of different API keys (or tenants that a plugin names) start from the same cached prefix; "
        "usage.prompt_tokens_details then reveals to a client which prompts others have sent.",
        "true or false",
    )
    trust_request_chat_template: bool = setting(
        False, SERVER, "Accept chat_template in a request's body.", "true or false"
    )
    allow_special_tokens_in_text: bool = setting(
        False,
        SERVER,
        "Encode a special token that a client writes into a message as that token, instead of as text.",
        "true or false",
    )


class FileSettings(DeclaredSettings):
    """Where settings are read from."""

    config: str | None = setting(
        None, FILE, "YAML or TOML file with any of these settings.", "a .yaml, .yml or .toml file", metavar="FILE"
    )
