//! The service of behaviour profiles.

use std::sync::Arc;

use monitor_api::v1::{
    FreezeProfileRequest, FreezeProfileResponse, GetProfileRequest, GetProfileResponse,
    ImportProfileRequest, ImportProfileResponse, LearnProfileRequest, LearnProfileResponse,
    ListProfilesRequest, ListProfilesResponse, Profile, profiles_server::Profiles,
};
use tonic::{Request, Response, Status};

use super::{
    ProfileCall, ProfileError,
    account::Account,
    caller::{Caller, Role},
    guard,
    service::{IMAGE_BYTES_MAX, check_length, within},
};
use crate::{audit::Call, profile::DOCUMENT_BYTES_MAX};

/// Who may change profiles.
const OPERATORS: [Role; 1] = [Role::Operator];

/// Answers calls about profiles.
pub(super) struct ProfileService(pub(super) Arc<Account>);

#[tonic::async_trait]
impl Profiles for ProfileService {
    async fn list_profiles(
        &self,
        _: Request<ListProfilesRequest>,
    ) -> Result<Response<ListProfilesResponse>, Status> {
        let profiles = within(self.0.node.profiles(ProfileCall::List)).await??;
        Ok(Response::new(ListProfilesResponse { profiles }))
    }

    async fn get_profile(
        &self,
        request: Request<GetProfileRequest>,
    ) -> Result<Response<GetProfileResponse>, Status> {
        let image = named(request.into_inner().image)?;
        let found = within(self.0.node.profiles(ProfileCall::Get { image })).await??;
        Ok(Response::new(GetProfileResponse {
            profile: Some(one(found)?),
        }))
    }

    async fn import_profile(
        &self,
        request: Request<ImportProfileRequest>,
    ) -> Result<Response<ImportProfileResponse>, Status> {
        let caller = self.permit(&request, "ImportProfile").await?;
        let document = request.into_inner().document;
        check_length("document", &document, DOCUMENT_BYTES_MAX)?;
        let call = ProfileCall::Import { document };
        let changed = self.change(&caller, "ImportProfile", "profile", call);
        Ok(Response::new(ImportProfileResponse {
            profile: Some(changed.await?),
        }))
    }

    async fn learn_profile(
        &self,
        request: Request<LearnProfileRequest>,
    ) -> Result<Response<LearnProfileResponse>, Status> {
        let caller = self.permit(&request, "LearnProfile").await?;
        let image = named(request.into_inner().image)?;
        let object = format!("profile/{image}");
        let call = ProfileCall::Learn { image };
        let changed = self.change(&caller, "LearnProfile", &object, call);
        Ok(Response::new(LearnProfileResponse {
            profile: Some(changed.await?),
        }))
    }

    async fn freeze_profile(
        &self,
        request: Request<FreezeProfileRequest>,
    ) -> Result<Response<FreezeProfileResponse>, Status> {
        let caller = self.permit(&request, "FreezeProfile").await?;
        let image = named(request.into_inner().image)?;
        let object = format!("profile/{image}");
        let by = caller.name.clone();
        let call = ProfileCall::Freeze { image, by };
        let changed = self.change(&caller, "FreezeProfile", &object, call);
        Ok(Response::new(FreezeProfileResponse {
            profile: Some(changed.await?),
        }))
    }
}

impl ProfileService {
    async fn permit<T>(&self, request: &Request<T>, method: &str) -> Result<Caller, Status> {
        guard::permit(&self.0.audit, request, method, &OPERATORS).await
    }

    /// Carries out a call that changes something, with its records in the audit log.
    async fn change(
        &self,
        caller: &Caller,
        method: &str,
        object: &str,
        call: ProfileCall,
    ) -> Result<Profile, Status> {
        let account = Arc::clone(&self.0);
        let change = async move { one(within(account.node.profiles(call)).await??) };
        let call = Call {
            method,
            object,
            detail: "",
        };
        self.0.audit.change(&caller.who(), call, change).await
    }
}

fn named(image: String) -> Result<String, Status> {
    check_length("image", &image, IMAGE_BYTES_MAX)?;
    Ok(image)
}

fn one(found: Vec<Profile>) -> Result<Profile, Status> {
    let missing = || Status::internal("the profile went away while it was asked for");
    found.into_iter().next().ok_or_else(missing)
}

impl From<ProfileError> for Status {
    fn from(error: ProfileError) -> Self {
        let message = error.to_string();
        match error {
            ProfileError::NoProfile(_) => Self::not_found(message),
            ProfileError::Ambiguous { .. } | ProfileError::InFolder(_) => {
                Self::failed_precondition(message)
            }
            ProfileError::Refused(_) => Self::invalid_argument(message),
            ProfileError::Full(_) => Self::resource_exhausted(message),
            ProfileError::Stopping => Self::unavailable(message),
            ProfileError::Elsewhere(_) => Self::failed_precondition(message),
        }
    }
}
