//! What version 1.5.0 of the schema says of class 2004 and of the objects that its findings hold
//! here, as a table of facts: github.com/ocsf/ocsf-schema, branch v1.5.0, commit f0c227b4, without
//! profiles and extensions.

/// For each object a line with its name, and of which attributes there must be one; then a line for
/// each attribute that is required (`!`) or that a finding of ours may have: its name, its type (`@`
/// is an object, `[]` a list), and the values of an enumeration with their names.
pub(super) const TABLE: &str = "\
detection_finding
  activity_id! integer 0=Unknown|1=Create|2=Update|3=Close|99=Other
  activity_name text
  category_name text
  category_uid! integer 2=Findings
  class_name text
  class_uid! integer 2004=Detection Finding
  count integer
  device @device
  end_time integer
  evidences @evidences[]
  finding_info! @finding_info
  is_alert boolean
  message text
  metadata! @metadata
  remediation @remediation
  resources @resource_details[]
  severity text
  severity_id! integer 0=Unknown|1=Informational|2=Low|3=Medium|4=High|5=Critical|6=Fatal|99=Other
  start_time integer
  status text
  status_id integer 0=Unknown|1=New|2=In Progress|3=Suppressed|4=Resolved|5=Archived|99=Other
  time! integer
  type_name text
  type_uid! integer 200400=Detection Finding: Unknown|200401=Detection Finding: Create|200402=Detection Finding: Update|200403=Detection Finding: Close|200499=Detection Finding: Other
  unmapped any
metadata
  correlation_uid text
  event_code text
  logged_time integer
  product! @product
  sequence integer
  uid text
  version! text
product any of name uid
  name text
  uid text
finding_info
  analytic @analytic
  attacks @attack[]
  created_time integer
  data_sources text[]
  first_seen_time integer
  last_seen_time integer
  modified_time integer
  title text
  types text[]
  uid! text
analytic any of name uid
  name text
  type text
  type_id! integer 0=Unknown|1=Rule|2=Behavioral|3=Statistical|4=Learning (ML/DL)|5=Fingerprinting|6=Tagging|7=Keyword Match|8=Regular Expressions|9=Exact Data Match|10=Partial Data Match|11=Indexed Data Match|99=Other
  uid text
  version text
attack any of technique sub_technique
  sub_technique @sub_technique
  technique @technique
technique any of name uid
  name text
  uid text
sub_technique any of name uid
  name text
  uid text
device any of name hostname
  hostname text
  name text
  os @os
  type text
  type_id! integer 0=Unknown|1=Server|2=Desktop|3=Laptop|4=Tablet|5=Mobile|6=Virtual|7=IOT|8=Browser|9=Firewall|10=Switch|11=Hub|12=Router|13=IDS|14=IPS|15=Load Balancer|99=Other
os
  name! text
  type text
  type_id! integer 0=Unknown|99=Other|100=Windows|101=Windows Mobile|200=Linux|201=Android|300=macOS|301=iOS|302=iPadOS|400=Solaris|401=AIX|402=HP-UX
evidences any of connection_info dst_endpoint file process
  connection_info @network_connection_info
  container @container
  dst_endpoint @network_endpoint
  file @file
  process @process
process any of pid uid
  ancestry @process_entity[]
  cmd_line text
  created_time integer
  file @file
  name text
  parent_process @process
  path text
  pid integer
  uid text
  user @user
process_entity any of name path pid uid
  name text
  path text
  pid integer
  uid text
user any of name uid
  name text
  uid text
file any of name
  hashes @fingerprint[]
  name! text
  path text
  type text
  type_id! integer 0=Unknown|1=Regular File|2=Folder|3=Character Device|4=Block Device|5=Local Socket|6=Named Pipe|7=Symbolic Link|99=Other
fingerprint
  algorithm text
  algorithm_id! integer 0=Unknown|1=MD5|2=SHA-1|3=SHA-256|4=SHA-512|5=CTPH|6=TLSH|7=quickXorHash|99=Other
  value! hex
network_connection_info
  direction text
  direction_id! integer 0=Unknown|1=Inbound|2=Outbound|3=Lateral|99=Other
  protocol_name text
  protocol_num integer
  protocol_ver_id integer 0=Unknown|4=|6=|99=Other
network_endpoint any of ip name
  ip ip
  name text
  port port
container any of uid name
  image @image
  name text
  orchestrator text
  pod_uuid uuid
  runtime text
  uid text
image any of name uid
  name text
  uid! text
resource_details any of name uid
  name text
  namespace text
  type text
  uid text
remediation
  desc! text
  references text[]
";
