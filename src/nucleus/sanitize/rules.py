"""The pinned rule set: how the secrets of well-known issuers look.

Written from the issuers' public documentation of their formats (each line names the issuer); lengths are lower bounds,
because issuers lengthen tokens. Nothing is compiled before its literal has been seen: the set costs no start-up.

Each pattern begins with its literal and has no unbounded repetition but its last: linear on any text. None has
lookaround or a back-reference: each compiles in RE2 as well.
"""

from __future__ import annotations

from nucleus.sanitize.patterns import Pattern

Span = tuple[int, int, str]

_T = r"[A-Za-z0-9_\-]"

# (literal that must be in the text, must it stand at the start of a word, pattern)
_DIRECT: tuple[tuple[str, bool, str], ...] = (
    ("gh", False, r"gh[pousr]_[A-Za-z0-9_.\-]{16,}"),  # GitHub: personal, OAuth, user, server, refresh
    ("github_pat_", False, r"github_pat_[A-Za-z0-9_]{16,}"),  # GitHub: fine-grained
    ("gl", True, r"gl(?:pat|oas|dt|rt|rtr|cbt|ptt|ft|imt|agent|wt|soat|ffct)-[A-Za-z0-9_\-=.]{16,}"),  # GitLab
    ("GR1348941", False, rf"GR1348941{_T}{{16,}}"),  # GitLab: runner registration
    ("xox", False, r"xox[a-z](?:\.xox[a-z])?-[A-Za-z0-9\-]{11,}"),  # Slack: bot, user, refresh, configuration
    ("xapp-", False, r"xapp-[A-Za-z0-9\-]{11,}"),  # Slack: app level
    ("hooks.slack.com/", False, r"hooks\.slack\.com/(?:services|workflows|triggers)/[A-Za-z0-9/_\-]{8,}"),  # Slack
    ("/api/webhooks/", False, r"/api/webhooks/\d{5,25}/[A-Za-z0-9_\-]{16,}"),  # Discord
    ("k_live_", True, r"k_live_[A-Za-z0-9]{10,}"),  # (a key cut at its start)
    ("sk_", False, r"sk_(?:live|test)_[A-Za-z0-9]{10,}"),  # Stripe: secret
    ("rk_", False, r"rk_(?:live|test)_[A-Za-z0-9]{10,}"),  # Stripe: restricted
    ("whsec_", False, r"whsec_[A-Za-z0-9+/=]{16,}"),  # Stripe: webhook signing
    ("AKIA", False, r"AKIA[A-Z0-9]{12,}"),  # AWS: access key id
    ("ASIA", False, r"ASIA[A-Z0-9]{12,}"),  # AWS: of a session
    ("ABSK", True, r"ABSK[A-Za-z0-9+/=]{40,}"),  # AWS Bedrock
    ("AIza", False, rf"AIza{_T}{{16,}}"),  # Google: API key
    ("ya29.", False, r"ya29\.[A-Za-z0-9_.\-]{16,}"),  # Google: OAuth access
    ("1//0", True, rf"1//0{_T}{{20,}}"),  # Google: OAuth refresh
    ("GOCSPX-", False, rf"GOCSPX-{_T}{{16,}}"),  # Google: OAuth client
    ("npm_", False, r"npm_[A-Za-z0-9]{16,}"),  # npm
    ("pypi-Ag", False, rf"pypi-Ag{_T}{{16,}}"),  # PyPI (a macaroon: always "Ag")
    ("sk-", True, rf"sk-(?:ant|proj|svcacct|admin|or|None|lf|live|test)-{_T}{{10,}}"),  # Anthropic, OpenAI, OpenRouter
    ("sk-", True, r"sk-[A-Za-z0-9]{20,}"),  # OpenAI: older
    ("hf_", True, r"hf_[A-Za-z0-9]{16,}"),  # Hugging Face
    ("api_org_", True, r"api_org_[A-Za-z0-9]{16,}"),  # Hugging Face: organisations
    ("gsk_", True, r"gsk_[A-Za-z0-9]{20,}"),  # Groq
    ("xai-", True, r"xai-[A-Za-z0-9]{20,}"),  # xAI
    ("pplx-", True, r"pplx-[A-Za-z0-9]{20,}"),  # Perplexity
    ("r8_", True, r"r8_[A-Za-z0-9]{20,}"),  # Replicate
    ("SG.", True, rf"SG\.{_T}{{16,64}}\.{_T}{{16,}}"),  # SendGrid
    ("AC", True, r"AC[0-9a-f]{32,}"),  # Twilio: account
    ("SK", True, r"SK[0-9a-f]{32,}"),  # Twilio: key
    ("eyJ", False, rf"eyJ{_T}{{13,}}(?:\.{_T}*){{0,4}}"),  # JWT, and any base64 of a JSON object
    ("AGE-SECRET-KEY-", False, r"AGE-SECRET-KEY-[0-9A-Z\-]{16,}"),  # age
    ("b3BlbnNzaC1rZXktdj", False, r"b3BlbnNzaC1rZXktdj[A-Za-z0-9+/=\s\\]*"),  # OpenSSH private key without its header
    ("MII", True, r"MII[A-Za-z0-9+/]{3}IBA[AD][A-Za-z0-9+/=\s\\]*"),  # RSA private key (PKCS #1, #8) without its header
    ("MIGHAgEA", True, r"MIGHAgEA[A-Za-z0-9+/=\s\\]*"),  # EC private key (PKCS #8)
    ("MHcCAQEE", True, r"MHcCAQEE[A-Za-z0-9+/=\s\\]*"),  # EC private key (SEC 1)
    ("MC4CAQAw", True, r"MC4CAQAw[A-Za-z0-9+/=\s\\]*"),  # Ed25519 private key (PKCS #8)
    ("hv", True, rf"hv[sbr]\.{_T}{{20,}}"),  # HashiCorp Vault
    ("dapi", True, r"dapi[0-9a-f]{32}"),  # Databricks
    ("_v1_", False, r"_v1_[0-9a-f]{40,}"),  # DigitalOcean (dop_, doo_, dor_)
    ("dckr_", False, rf"dckr_(?:pat|oat)_{_T}{{16,}}"),  # Docker Hub
    ("shp", True, r"shp(?:at|ca|pa|ss|tka)_[0-9a-fA-F]{24,}"),  # Shopify
    ("lin_", True, r"lin_(?:api|oauth)_[A-Za-z0-9]{20,}"),  # Linear
    ("glsa_", True, r"glsa_[A-Za-z0-9_]{20,}"),  # Grafana
    ("glc_", True, r"glc_[A-Za-z0-9+/=]{20,}"),  # Grafana Cloud
    ("ATATT3", True, r"ATATT3[A-Za-z0-9_\-=]{20,}"),  # Atlassian
    ("ATCTT3", True, r"ATCTT3[A-Za-z0-9_\-=]{20,}"),  # Atlassian
    ("dp.", True, r"dp\.(?:pt|st|ct|sa|scim|audit)\.[A-Za-z0-9._\-]{20,}"),  # Doppler
    ("pul-", True, r"pul-[0-9a-f]{32,}"),  # Pulumi
    ("rubygems_", True, r"rubygems_[0-9a-f]{32,}"),  # RubyGems
    ("cio", True, r"cio[A-Za-z0-9]{32}"),  # crates.io
    ("ntn_", True, r"ntn_[A-Za-z0-9]{20,}"),  # Notion
    ("figd_", True, rf"figd_{_T}{{20,}}"),  # Figma
    ("PMAK-", True, r"PMAK-[0-9a-f\-]{24,}"),  # Postman
    ("NRAK-", True, r"NRAK-[A-Z0-9]{20,}"),  # New Relic
    ("key-", True, r"key-[0-9a-f]{32}"),  # Mailgun
    ("sq0", True, rf"sq0(?:atp|csp|idp)-{_T}{{20,}}"),  # Square
    ("sbp_", True, r"sbp_[0-9a-f]{32,}"),  # Supabase
    ("sb_secret_", True, rf"sb_secret_{_T}{{16,}}"),  # Supabase
    ("pscale_", True, rf"pscale_(?:tkn|pw|oauth)_{_T}{{16,}}"),  # PlanetScale
    ("fm2_", True, r"fm2_[A-Za-z0-9+/=]{20,}"),  # Fly.io
    ("nfp_", True, r"nfp_[A-Za-z0-9]{20,}"),  # Netlify
    ("tskey-", True, rf"tskey-{_T}{{16,}}"),  # Tailscale
    ("ops_", True, rf"ops_eyJ{_T}{{16,}}"),  # 1Password
    ("lsv2_", True, rf"lsv2_{_T}{{20,}}"),  # LangSmith
    ("sntry", True, r"sntry[su]_[A-Za-z0-9+/=_\-]{20,}"),  # Sentry
    ("bkua_", True, r"bkua_[0-9a-f]{30,}"),  # Buildkite
    ("CCIPAT_", True, r"CCIPAT_[A-Za-z0-9_]{20,}"),  # CircleCI
)

DIRECT = tuple((literal, whole, Pattern(pattern)) for literal, whole, pattern in _DIRECT)

# (literal inside the secret, what it is made of besides letters and digits, least length)
EXPANDED: tuple[tuple[str, str, int], ...] = (
    ("Q~", "_~.-", 34),  # Microsoft Entra: client secret
    ("JQQJ99", "", 70),  # Azure: identifiable keys
    ("+ASt", "+/=", 84),  # Azure: storage account key
    ("ACDb", "+/=", 84),  # Azure: Cosmos DB key
    (":AA", "_-:", 40),  # Telegram: bot
    (".atlasv1.", "_-.", 60),  # HashiCorp Terraform Cloud
    ("T3BlbkFJ", "_-", 30),  # OpenAI: in the middle of every key
)

# Lower-case words of a name, longest first where one holds the other. How: see `secrets._value`.
NAMES: tuple[tuple[str, str], ...] = (
    ("authorization", "line"),
    ("cookie", "line"),
    ("password", "name"),
    ("passwd", "name"),
    ("passphrase", "name"),
    ("secret", "name"),
    ("token", "name"),
    ("apikey", "name"),
    ("api_key", "name"),
    ("api-key", "name"),
    ("access_key", "name"),
    ("accesskey", "name"),
    ("accountkey", "name"),
    ("account_key", "name"),
    ("private_key", "name"),
    ("privatekey", "name"),
    ("signing_key", "name"),
    ("encryption_key", "name"),
    ("credential", "name"),
    ("signature", "name"),
    ("sessionid", "name"),
    ("pwd", "word"),
    ("sig", "word"),
    ("auth", "word"),
    ("pass", "word"),
)
# One of these is in each of the names above, and in `login`.
STEMS = ("pass", "pwd", "auth", "cookie", "secret", "token", "key", "credential", "sig", "session", "login", "-u")
